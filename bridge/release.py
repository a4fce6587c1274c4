"""Which version this is."""

from __future__ import annotations


def release() -> str:
    """The version that is running, "unknown" where pip did not install it."""
    from importlib import metadata  # large, and rarely asked for

    try:
        return metadata.version("opensmtpd-bridge")
    except metadata.PackageNotFoundError:
        return "unknown"
