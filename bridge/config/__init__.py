"""The configuration: a TOML file becomes frozen values, or a list of all that is wrong with it.

    values      what values are made of, how they are shown, what a mistake is
    kinds       how one value is read
    rows        what a key is
    schema      which keys there are
    processes   those of the two processes themselves
    failure     those for mail that could not be judged, and the choice among them
    profiles    the whole as a value, and which part of it serves a session
    load        a file's text to that value, all mistakes at once
    permissions what the filter's user may not read (for `filter-bridge check` only)

Standard library and smtpd/ only, since the shim reads it as well.
"""

from bridge.config.failure import Failures
from bridge.config.load import ConfigError, load, parse
from bridge.config.profiles import Config, Profile
from bridge.config.values import Endpoint, Secret

__all__ = ["Config", "ConfigError", "Endpoint", "Failures", "Profile", "Secret", "load", "parse"]
