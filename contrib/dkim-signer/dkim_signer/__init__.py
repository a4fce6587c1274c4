"""A DKIM signing endpoint over HTTP; its protocol and deployment are in README.md.

keys (what is in the key directory), sign (message and keys -> fields), app (HTTP), cli (options).
"""

__version__ = "0.1.0"
