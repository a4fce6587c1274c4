"""`python3 -m dkim_signer` is `dkim-signer`."""

import sys

from dkim_signer.cli import main

sys.exit(main())
