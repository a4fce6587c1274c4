"""opensmtpd-bridge: OpenSMTPD asks, services judge.  This is the map of the house.

smtpd runs the *shim*, which answers every request in time, come what may.  The shim runs the
*bridge*, which decides, and may crash, hang or be replaced at any moment.

    smtpd <- filter protocol -> shim <- link -> bridge <- HTTP, DNS -> rspamd, resolver, signer

The way of a message, and where each step lives:

    bytes on fd 0      smtpdend.py       reads and writes, and never waits
                       shim.py           the loop, deadlines, what stands for a missing answer
    -> events          smtpd/            OpenSMTPD's side, pure: events, wire (spelling, versions),
                                         lines, session, message, decisions (what is legal when),
                                         protocol (exactly one answer for each request; items
                                         and live are its values, output is the one door out)
    -> a request       dispatch.py       which bridge gets what, how often, until when
                       fair.py           whose turn it is, of many peers
                       bridges.py        bridges come and go; child.py spawns one
    -> the link        link.py           frames; linkend.py: the shim's end, server.py: the other
    -> a verdict       policy.py         the shipped filter: whom to ask, what it means together
                       forged.py         the fields that only we may write
                       filter.py         handlers of events: what policy.py is written with;
                                         handlers.py, state.py, threads.py: its parts
    -> services        services/         fcrdns, dkim, rspamd (its request, _reply, _verdict);
                                         upstream: choice, retries, breaker; http: the client
    -> edits           edits.py          header and body edits as splices of the message
                       folding.py        how a field of ours is written
                       completion.py     the message as smtpd will complete it, for a signer
    -> bytes on fd 1   smtpd/protocol.py checks phase, version and slot; smtpd/output.py

Around it:

    cli.py, serve.py   the commands; how a bridge process begins and ends
    listen.py, dial.py a bridge as a service of its own, and the way to it; notify.py: systemd
    control.py         `filter-bridge reload`;  release.py: which version this is
    metrics.py         what is counted; exporter.py: where that can be read
    handlers.py        what a handler may be and answer; threads.py: where plain functions run;
                       state.py: what an author hangs on a session
    inprocess.py       `Filter.run()`, without a shim; core.py, handlerloop.py: its threads
    opensmtpd.py       the callback API of 2018; shipped.py: policy.py within another filter
    config/            the file: schema and processes (every key), kinds (types of values), load
                       (mistakes), failure, profiles, permissions
    registration.py    what smtpd is asked for; failure.py: what a failure leads to
    spool.py, log.py   held messages on disk; how a log line reads
    check/             `filter-bridge check`;  keygen.py: DKIM keys
    testing/           a model of smtpd, DNS and HTTP stand-ins: for our tests and yours;
                       testing/tester.py: where the test of a filter begins

Where to begin, when you want to change:

    a key of the file             config/schema.py, contrib/bridge.toml, and who reads it
    what rspamd's reply means     services/rspamd_verdict.py
    what rspamd is told           services/rspamd.py
    the reverse DNS check         services/fcrdns.py; what follows from it: policy.py
    another service               services/, services/build.py, policy.py (see CONTRIBUTING.md)
    a new protocol version        smtpd/wire.py, smtpd/decisions.py: rows of tables
    what happens on failure       failure.py, config/failure.py
    a metric                      metrics.py: a row, and who counts
    a log line or a reply's text  shim.py (refused, deferred), policy.py (why), log.py (shape)

Imports go down only: smtpd/ < link, config < shim, and smtpd/ < services < policy < server < cli.
The shim's half is standard library alone.  So the public names below are loaded when they are
first used (PEP 562), and `import bridge` loads nothing.
"""

# ruff: noqa: F403, F405, RUF022  the events come by a star, and in the order of a session

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as typing's, which nobody needs for this
if TYPE_CHECKING:
    from bridge.edits import Add, Insert, Remove, Replace, ReplaceBody, ReplaceMessage, Verdict
    from bridge.filter import Filter, Message
    from bridge.shipped import shipped_policy
    from bridge.smtpd.decisions import Disconnect, Junk, Proceed, Reject, Rewrite
    from bridge.smtpd.events import *
    from bridge.smtpd.session import Session, Transaction

__all__ = [
    "Filter", "Message", "Session", "Transaction", "shipped_policy",
    # what a handler returns
    "Proceed", "Junk", "Reject", "Disconnect", "Rewrite", "Verdict",
    "Add", "Insert", "Remove", "Replace", "ReplaceBody", "ReplaceMessage",
    # reports
    "Event", "Report", "LinkConnect", "LinkGreeting", "LinkIdentify", "LinkTls", "LinkAuth",
    "LinkDisconnect", "TxReset", "TxBegin", "TxMail", "TxRcpt", "TxEnvelope", "TxData", "TxCommit",
    "TxRollback", "ProtocolClient", "ProtocolServer", "FilterReport", "FilterResponse", "Timeout",
    # requests
    "Request", "Connect", "Helo", "Ehlo", "StartTls", "Auth", "MailFrom", "RcptTo", "Data",
    "DataLine", "Rset", "Quit", "Noop", "Help", "Wiz", "Commit",
]  # fmt: skip

# Where they are, the light ones first.
_HOMES = ("smtpd.decisions", "smtpd.events", "smtpd.session", "edits", "filter", "shipped")


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            found: object = getattr(import_module(f"bridge.{home}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
