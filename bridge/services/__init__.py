"""Whom the bridge asks: each a pure half and a thin client.

The pure half makes a request from what is known of a session, and of the reply a verdict;
the client does the rest.
"""
