"""Does the bridge get along with other filters, before it, behind it, and with itself?

The same mail goes through each chain: what is refused is refused alike and leaves the session
usable, and what passes arrives as it left.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import places
from tests.live.letters import DATED, LETTER, SENDER, Post, ready
from tests.live.rspamd import GTUBE, Rspamd, verdict
from tests.live.world import Listener, OpenSMTPD, stored

CHECKED = "127.5.5.5"
ZONE = "$PTR 127.5.5.5 good.example\ngood.example A 127.5.5.5"
CONFIGURATION = """
[fcrdns]
nameservers = ["{dns}"]
exempt_networks = ["127.0.0.1/32"]
[rspamd]
servers = ["RSPAMD"]
"""
# The second one refuses what the first lets pass.
OTHER = 'authserv_id = "other.example"' + CONFIGURATION + 'actions = { "custom tag" = "reject" }\n'
BLOCKED = "blocked@client.example"
FILTERS = {
    "bridge": "{bridge} -f {dir}/bridge.toml",
    "other": "{bridge} -f {dir}/other.toml",
    "echo": "{python} {project}/tests/live/echo_filter.py",
    "builtin": f'phase mail-from match mail-from {{ "{BLOCKED}" }} reject "550 5.1.8 Blocked"',
    "named": 'chain { "echo", "bridge" }',
}
CHAINS = {
    "alone": ("bridge",),
    "first": ("bridge", "echo"),
    "second": ("echo", "bridge"),
    "before a builtin": ("bridge", "builtin"),
    "behind a builtin": ("builtin", "bridge"),
    "twice": ("bridge", "other"),
    "in the middle": ("echo", "bridge", "other"),
    "in a chain with a name": ("named",),
}
LISTENERS = [
    Listener(name.replace(" ", "-"), 2500 + number, filters=filters)
    for number, (name, filters) in enumerate(CHAINS.items())
]


@pytest.fixture(scope="module", params=places.VERSIONS)
def post(request: pytest.FixtureRequest, rspamd: Rspamd) -> Iterator[Post]:
    files = {
        "bridge.toml": CONFIGURATION.replace("RSPAMD", rspamd.url),
        "other.toml": OTHER.replace("RSPAMD", rspamd.url),
    }
    with OpenSMTPD(
        request.param,
        filters=FILTERS,
        socket_filters=(),
        files=files,
        listeners=LISTENERS,
        zone=ZONE,
    ) as mta:
        yield ready(mta, "bridge", "other")
        assert mta.alive
        assert len(mta.pids().filters) == 3
    assert not mta.leftovers


@pytest.fixture(params=[listener.name for listener in LISTENERS])
def chain(request: pytest.FixtureRequest) -> str:
    """Each chain in turn: its listener."""
    return str(request.param)


def test_spam_is_refused_and_the_session_goes_on(post: Post, rspamd: Rspamd, chain: str) -> None:
    refusals = {
        LETTER + GTUBE + b"\r\n": "554 5.7.1 Gtube pattern [",
        verdict(action="reject", message="no") + LETTER: "554 5.7.1 no [",
        verdict(action="soft reject") + LETTER: "451 4.7.1 Try again later [",
        verdict(action="discard") + LETTER: "554 5.7.1 Spam message rejected [",
    }
    bridges = 2 if "other" in CHAINS[chain.replace("-", " ")] else 1
    with post.mta.client(chain) as client:
        for message, reply in refusals.items():
            before = len(rspamd.seen())
            assert str(post.refused(client, message)).startswith(reply)
            # Once for what was refused: a filter behind us has nothing to ask about. Each once
            # for the letter that comes after it. rspamd refuses GTUBE before its rules see it.
            asked = bridges + (GTUBE not in message)
            assert len(rspamd.seen()) - before == asked
        assert client.quit().code == 221


def test_ham_arrives_byte_for_byte(post: Post, chain: str) -> None:
    message = (
        DATED + b"X-A: \xe9\r\n\r\n.\r\n..\r\n.x\r\na\rb\r\nc\r\r\n\r\n\x01|\x0c|\r\n \t\r\n\r\n"
    )
    with post.mta.client(chain) as client:
        for _ in range(2):
            assert post.sent(client, message).below_received == stored(message)


def test_spam_is_marked(post: Post, chain: str) -> None:
    mail = post.send(verdict(action="add header", score=7) + LETTER, listener=chain)
    assert mail.header("X-Spam") == [b"Yes"]
    assert [name for name, _ in mail.headers][-3:] == ["X-Spam", "X-Spam-Score", "X-Spam-Status"]
    assert mail.junk


def test_empty_mail_passes(post: Post, chain: str) -> None:
    mail = post.send(b"", listener=chain)
    assert [name for name, _ in mail.headers] == ["Received"]


@pytest.mark.parametrize("chain", ["before-a-builtin", "behind-a-builtin"])
def test_the_builtin_filter_works_too(post: Post, chain: str) -> None:
    with post.mta.client(chain) as client:
        reply = client.deliver(BLOCKED, [post.recipient()], LETTER)
        assert str(reply) == "550 5.1.8 Blocked"
        assert post.refused(client, LETTER + GTUBE).code == 554
        assert client.mail(BLOCKED).code == 550
        post.sent(client)


@pytest.mark.parametrize("chain", ["twice", "in-the-middle"])
def test_what_only_the_second_bridge_refuses(post: Post, chain: str) -> None:
    with post.mta.client(chain) as client:
        reply = post.refused(client, verdict(action="custom tag", message="Not here") + LETTER)
        assert str(reply).startswith("554 5.7.1 Not here [")
        session = post.mta.wait_log(rf"^other: refused session=(\w+) peer={client.local} ")[1]
        post.mta.wait_log(rf"^bridge: rspamd-note session={session} .*unknown action 'custom tag'")


@pytest.mark.parametrize("chain", ["twice", "in-the-middle"])
def test_two_bridges_say_so_each_under_its_own_name(post: Post, chain: str) -> None:
    forged = b"Authentication-Results: other.example; spf=pass\r\n"
    mail = post.send(forged + LETTER, listener=chain, source=CHECKED)
    result = b"; iprev=pass policy.iprev=127.5.5.5\n (good.example)"
    assert mail.header("Authentication-Results") == [
        b"other.example" + result,
        b"mx.example.org" + result,
    ]
    assert mail.below_received.endswith(stored(LETTER))


def test_a_client_that_leaves_does_no_harm(post: Post, chain: str) -> None:
    client = post.mta.client(chain)
    assert client.begin(SENDER, [to := post.recipient()]).code == 354
    client.send(LETTER + b"x\r\n" * 1000)
    client.abort()
    assert post.send(listener=chain).below_received == stored(LETTER)
    assert post.found(to) == []
