"""Whom the bridge asks: each a pure half (request from state, verdict from reply) and a thin client."""
