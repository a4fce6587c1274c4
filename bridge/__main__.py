"""`python -m bridge` is the command filter-bridge."""

import sys

from bridge.cli import main

sys.exit(main())
