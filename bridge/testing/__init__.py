"""For tests of filters: a model of smtpd that dies where smtpd would, and services.

`FilterTester` is what an author's tests begin with.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # what typing's is, without loading typing
if TYPE_CHECKING:
    from bridge.core import Limits
    from bridge.testing.outcomes import (
        Delivery,
        Reply,
        SessionHung,
        SmtpdDied,
        SmtpdError,
        SmtpdWedged,
    )
    from bridge.testing.process import FilterProcess
    from bridge.testing.smtpd import Smtpd
    from bridge.testing.tester import Decided, FilterTester

__all__ = [
    "Decided", "Delivery", "FilterProcess", "FilterTester", "Limits", "Reply", "SessionHung",
    "Smtpd", "SmtpdDied", "SmtpdError", "SmtpdWedged",
]  # fmt: skip

# Where they are; loaded when first used (PEP 562), since the model alone needs no event loop.
_HOMES = ("testing.outcomes", "testing.smtpd", "testing.process", "testing.tester", "core")


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            found: object = getattr(import_module(f"bridge.{home}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
