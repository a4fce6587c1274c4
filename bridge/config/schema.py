"""Which keys the configuration has: one row each, with its kind, default and meaning.

The rows are the fields of frozen dataclasses, so a table of the file and its value have one
shape.  The example file, the manual and their tests are derived from `SECTIONS`; what stands in
failure.py and processes.py is in it too.  Reads no file and checks nothing across keys: that
is load.py.
"""

# ruff: noqa: RUF009  (a field's default is made by a call, as it is with dataclasses.field)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bridge.config import failure, processes
from bridge.config import kinds as k
from bridge.config.rows import key, own
from bridge.config.values import Network, Secret
from bridge.smtpd.decisions import Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """The keys above all tables."""

    enforce: bool = own(
        k.BOOL, True, "false: ask the services and log their verdicts, but let everything pass."
    )
    authserv_id: str = own(
        k.HOST,
        "",
        'Our name in Authentication-Results (RFC 8601, 2.5); "": the one smtpd greets with.',
    )


_DO = k.choice("disconnect", "reject", "mark", "ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fcrdns:
    """Forward-confirmed reverse DNS of the client (RFC 8601, 2.7.3, iprev)."""

    enabled: bool = own(k.BOOL, True, "Check the reverse DNS of clients.")
    source: str = own(
        k.choice("dns", "smtpd"), "dns", "Ask the DNS, or believe smtpd's own lookup."
    )
    nameservers: tuple[str, ...] = key(
        k.NAMESERVERS, [], "DNS servers to ask; with none those of /etc/resolv.conf."
    )
    timeout: float = key(k.duration(0.1, 300), "5s", "Time for the whole check of one address.")
    max_names: int = key(k.integer(1, 100), 10, "How many names of one address are tried.")
    cache_entries: int = key(
        k.integer(0, 10_000_000),
        10_000,
        "How many answers are remembered, each for its TTL; 0: none.",
    )
    fail: str = own(
        _DO,
        "reject",
        "When the name does not lead back to the address: disconnect at connect, reject at "
        "RCPT TO, mark in the header only, or ignore.",
    )
    permerror: str = own(_DO, "reject", "When the address has no name.")
    temperror: str = own(_DO, "ignore", "When the DNS gave no answer.")
    reply: Reject = own(
        k.reply("45"),
        "550 5.7.25 Reverse DNS validation failed",  # RFC 7372, 3.3
        "What a client is told after fail or permerror.",
    )
    temperror_reply: Reject = own(
        k.reply("4"),
        "451 4.7.25 Reverse DNS lookup failed, try again later",
        "What a client is told after temperror.",
    )
    exempt_networks: tuple[Network, ...] = own(
        k.NETWORKS, ["127.0.0.0/8", "::1/128"], "Clients that are not checked, by address."
    )
    exempt_names: tuple[str, ...] = own(
        k.SUFFIXES,
        [],
        "Clients that are not refused, by reverse name (anybody can claim one).",
    )
    exempt_recipients: tuple[str, ...] = own(
        k.RECIPIENTS,
        ["postmaster"],  # RFC 5321, 4.5.1
        "Recipients that everybody may write to (not after disconnect).",
    )
    exempt_authenticated: bool = own(
        k.BOOL, True, "Whoever authenticates is not refused (not after disconnect)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """How a service is reached: one for all profiles."""

    enabled: bool = own(k.BOOL, True, "Whether it is asked at all.")
    servers: tuple[str, ...] = key(
        k.SERVERS, [], "Its servers, in the order in which they are tried."
    )
    strategy: str = key(
        k.choice("failover", "round-robin"),
        "failover",
        "Use the first server that works, or all in turn.",
    )
    timeout: float = key(k.duration(0.1, 600), "20s", "Time for one try at one server.")
    connect_timeout: float = key(k.duration(0.05, 600), "3s", "Time for the connection of one try.")
    retries: int = key(
        k.integer(0, 20),
        2,
        "How often a failed request is tried again, at another server if there is one.",
    )
    deadline: float = key(k.duration(0.1, 600), "30s", "Time for all tries together.")
    # rspamd's own: 4 errors, 60 s (src/libutil/upstream.c); a restart takes it one second.
    max_errors: int = key(
        k.integer(1, 1000), 4, "So many errors of a server in a row take it out of use."
    )
    error_window: float = key(
        k.duration(0.1), "1h", "A pause of more than this between two errors starts the row anew."
    )
    revive: float = key(
        k.duration(0.1),
        "2s",
        "When a server that is out of use is tried again; doubled each time that fails.",
    )
    max_revive: float = key(k.duration(0.1), "60s", "The most that revive is doubled to.")
    ca_file: str = key(
        k.PATH, "", "PEM file of those who may sign the server's certificate; \"\": the system's."
    )
    client_certificate: str = key(
        k.PATH, "", "PEM file of our certificate, for servers that want one."
    )
    client_key: str = key(k.PATH, "", "PEM file of its key, if the certificate's does not hold it.")
    server_name: str = key(
        k.HOST, "", "The name that the server's certificate must have, if not the one in its URL."
    )
    token: Secret = key(
        k.SECRET,
        "",
        'A secret, sent as "Authorization: Bearer"; "env:NAME" is that environment variable.',
    )
    token_file: str = key(k.PATH, "", "A file that holds the token.")
    max_size: int = key(
        k.size(1024, 1 << 31), "50M", "A longer message is not sent; see too_large in [failure.*]."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rspamd(Upstream):
    """The scan of each message: POST /checkv2 at rspamd's normal worker."""

    servers: tuple[str, ...] = key(
        k.SERVERS,
        ["http://127.0.0.1:11333"],
        'rspamd\'s normal workers (not the milter port, 11332): "http://HOST:PORT", '
        '"https://HOST:PORT" or "unix:/PATH".',
    )
    compress: bool = key(k.BOOL, False, "Send messages compressed (needs the zstandard package).")
    settings_id: str = own(k.TEXT, "", "The id of a rule in rspamd's settings to scan with.")
    headers: Mapping[str, str] = own(
        k.HEADERS, {}, 'More request headers, like { "MTA-Tag" = "mx1" }; not for secrets.'
    )
    scan_authenticated: bool = own(k.BOOL, True, "Scan what authenticated clients send.")
    scan_local: bool = own(k.BOOL, True, "Scan what local users send over smtpd's socket.")
    local_ip: bool = own(
        k.BOOL, False, "Call local users 127.0.0.1, for which rspamd signs and scans less."
    )
    spam_header: str = own(
        k.FIELD_NAME,
        "X-Spam",
        'The field of "NAME: Yes" that spam gets; mail.maildir(8) looks for X-Spam.',
    )
    score_header: str = own(
        k.choice("spam", "always", "never"),
        "spam",
        "Which mail gets X-Spam-Score and X-Spam-Status.",
    )
    reject_reply: Reject = own(
        k.reply("5"),
        "554 5.7.1 Spam message rejected",  # as rspamd's milter (milter.c)
        "What a client is told when rspamd rejects without a text of its own.",
    )
    soft_reject_reply: Reject = own(
        k.reply("4"),
        "451 4.7.1 Try again later",
        "What a client is told when rspamd defers without a text of its own.",
    )
    discard: str = own(
        k.choice("reject", "accept", "spam"),
        "reject",
        "What to do when rspamd says discard, which smtpd can't: nothing vanishes by default.",
    )
    quarantine: str = own(
        k.choice("spam", "accept", "reject", "tempfail"),
        "spam",
        "What to do when rspamd says quarantine, which smtpd can't; spam: deliver as spam.",
    )
    actions: Mapping[str, str] = own(
        k.ACTIONS, {}, 'What actions of your own mean, like { "custom tag" = "add header" }.'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dkim(Upstream):
    """The signing endpoint, asked last, with the message as it will leave."""

    enabled: bool = own(k.BOOL, False, "Whether it is asked at all.")
    servers: tuple[str, ...] = key(
        k.SERVERS, [], 'Signers: "http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH".'
    )
    timeout: float = key(k.duration(0.1, 600), "5s", "Time for one try at one server.")
    deadline: float = key(k.duration(0.1, 600), "10s", "Time for all tries together.")
    sign_authenticated: bool = own(k.BOOL, True, "Sign what authenticated clients send.")
    sign_local: bool = own(k.BOOL, True, "Sign what local users send over smtpd's socket.")
    sign_networks: tuple[Network, ...] = own(
        k.NETWORKS, [], "Sign what clients with these addresses send."
    )
    domains: tuple[str, ...] = own(
        k.SUFFIXES,
        [],
        "From domains that have to be signed: no key is a failure then; with none, those that "
        "the signer has a key for are.",
    )
    sign_as: Mapping[str, str] = own(
        k.SIGN_AS,
        {},
        "Signing domains of From domains that have no key of their own, like "
        '{ ".example.org" = "example.org" } for all below it.',
    )
    alignment: str = own(
        k.choice("strict", "relaxed", "none"),
        "relaxed",
        "Which From domain a login may use: strict: its own, relaxed: or one below or above "
        "it, none: any.  A login without a domain may use any.",
    )
    hostname: str = own(
        k.HOST, "", 'What smtpd adds to addresses without a domain; "": the name it greets with.'
    )
    masquerade: bool = own(
        k.BOOL,
        False,
        "Whether smtpd.conf has `senders ... masquerade`, which puts the envelope sender into "
        "From after filters; then that is done before signing.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Whom a profile serves: all that is given must fit; nothing given: only --profile."""

    port: tuple[int, ...] = key(
        k.many(k.integer(1, 65535), alone=True),
        [],
        "The listener's port, or a list: 587 or [465, 587].",
    )
    address: tuple[Network, ...] = key(
        k.many(k.NETWORK, alone=True), [], "The listener's address or network, or a list of them."
    )
    authenticated: bool | None = key(
        k.BOOL, None, "Only clients that authenticated (or not); local ones count as if they had."
    )
    local: bool | None = key(k.BOOL, None, "Only mail over smtpd's socket (or not).")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A part of the configuration for some sessions: the first whose match fits serves one.
    What it does not set is as in the main part."""

    name: str = key(k.WORD, None, "The profile's name, for the log and for --profile.")


# Each table of the file and its rows; rows of `own` may stand in a [[profile]] as well.
SECTIONS: dict[str, type] = {
    "": Top,
    "shim": processes.Shim,
    "bridge": processes.Bridge,
    "log": processes.Log,
    "fcrdns": Fcrdns,
    "rspamd": Rspamd,
    "dkim": Dkim,
    "failure": failure.Failure,
    "failure.bridge": failure.BridgeFailure,
    "failure.bridge.authenticated": failure.BridgeFailureAuthenticated,
    "failure.rspamd": failure.RspamdFailure,
    "failure.rspamd.authenticated": failure.ServiceFailureAuthenticated,
    "failure.dkim": failure.ServiceFailure,
    "failure.dkim.authenticated": failure.ServiceFailureAuthenticated,
}
# What a [[profile]] has beside them.
PROFILE: dict[str, type] = {"": Named, "match": Match}
