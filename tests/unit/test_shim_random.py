"""Any sessions in any interleaving, against a bridge that does anything: smtpd never dies, each
request is answered once, and what is delivered is what was sent with what was answered.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge import link
from bridge.edits import unstuff
from bridge.smtpd import events
from bridge.smtpd.message import Splice, join
from bridge.testing.client import Script
from bridge.testing.outcomes import Outcome
from bridge.testing.smtpd import Smtpd
from tests.unit.shim_world import Bridge, Straw, World

# What a bridge does with a request, and how often.
MOODS = {
    "good": 12,
    "refuses": 3,
    "keeps it for later": 3,
    "answers twice": 2,
    "fails": 1,
    "answers nonsense": 2,
    "says junk": 1,
    "rewrites": 1,
    "is silent": 1,
    "dies": 2,
    "dies in its answer": 1,
    "raves": 1,
    "drains": 1,
}


class Moody(Bridge):
    """Does anything; remembers what it has answered that is good."""

    def __init__(self, seed: int, *, application: bool) -> None:
        self.random = random.Random(seed)
        self.application = application
        if application:
            phases = sorted(events.PHASES.keys() - {"help", "wiz"})
            self.registration = {"phases": phases, "asks_commit": True}
        self.results: set[bytes] = set()  # what may be delivered, for it was said
        self.later: list[tuple[Straw, link.Header, bytes]] = []

    def request(self, straw: Straw, header: link.Header, body: bytes) -> None:
        (mood,) = self.random.choices(list(MOODS), list(MOODS.values()))
        match mood:
            case "keeps it for later":
                self.later.append((straw, header, body))
                return
            case "answers twice":
                self.good(straw, header, body)
                straw.answer(header["id"], "reject", status="5.7.1", text="No", code=550)
            case "refuses":
                straw.answer(header["id"], "reject", status="5.7.1", text="No", code=550)
            case "fails":
                straw.answer(header["id"], failed="internal")
            case "answers nonsense":
                self.nonsense(straw, header)
            case "says junk":
                straw.answer(header["id"], "junk")
            case "rewrites":
                straw.answer(header["id"], "rewrite", value="<x@example.net>")
            case "dies":
                straw.close()
            case "dies in its answer":
                straw.raw(link.encode({"kind": "answer", "id": header["id"]}, 9)[:-3])
                straw.close()
            case "raves":
                straw.raw(b"nonsense in place of a frame")
            case "drains":
                straw.say("bye")
                self.good(straw, header, body)
            case "good":
                self.good(straw, header, body)
        while self.later and self.random.random() < 0.5:
            self.good(*self.later.pop())

    def good(self, straw: Straw, header: link.Header, body: bytes) -> None:
        splices = self.splices(body) if header["phase"] == "message" else []
        self.results.add(unstuff(join(body, splices)))
        straw.answer(header["id"], "proceed", splices)

    def splices(self, body: bytes) -> list[Splice]:
        """New fields on top, and lines of the body gone or new."""
        end_of_header = body.find(b"\n\n") + 2
        starts = [at + 1 for at in range(end_of_header - 1, len(body)) if body[at] == 10]
        picked = sorted(self.random.choices(starts, k=2 * self.random.randrange(3)))
        found = [
            Splice(start, end, self.random.choice((b"", b"..\n", b"new\nlines\n")))
            for start, end in zip(picked[::2], picked[1::2], strict=True)
        ]
        top = self.random.choice((b"", b"X-New: field\n", b"X-New: a\n b\nX-Too: c\n"))
        return [Splice(0, 0, top), *found]

    def nonsense(self, straw: Straw, header: link.Header) -> None:
        match self.random.randrange(4):
            case 0:
                straw.answer(header["id"], None)
            case 1:
                straw.answer(header["id"], "proceed", [Splice(0, 0, b"no line end")])
            case 2:
                straw.answer(header["id"], "proceed", [Splice(1, 1 << 40, b".\n")])
            case 3:
                straw.answer(999_999)


@dataclass
class Sent:
    """One message of a client."""

    tag: bytes
    content: bytes
    outcome: Outcome
    complete: bool


@dataclass
class Plan:
    """What one client does: a message each (of how many lines), or something else."""

    steps: list[str]
    sent: list[Sent] = field(default_factory=list)

    def play(self, script: Script, number: int) -> None:
        script.ehlo(f"client-{number}.example.net")
        for count, step in enumerate(self.steps):
            if step in ("rset", "noop", "quit"):
                script.command(step.upper())
                continue
            if step == "refused":
                script.mail("not an address")
                continue
            tag = b"%d-%d" % (number, count)
            content = b"Subject: %s\n\n" % tag + b".dot\n\nline\n" * (count % 4)
            script.mail(f"a{number}@example.net")
            script.rcpt("bob@example.org")
            outcome = script.data(content, end=step == "message")
            self.sent.append(Sent(tag, content, outcome, step == "message"))
            if step == "abort":
                script.abort()
                return
            if step == "timeout":
                script.timeout()
                return
        script.quit()


plans = st.lists(
    st.lists(
        st.sampled_from(["message"] * 6 + ["rset", "noop", "abort", "timeout", "refused"]),
        max_size=4,
    ).map(Plan),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plans=plans,
    seed=st.integers(0, 1 << 30),
    version=st.sampled_from(["0.4", "0.6", "0.7"]),
    policy=st.sampled_from(["tempfail", "accept", "accept-header"]),
    application=st.booleans(),
    places=st.integers(1, 2),
)
def test_anything_against_anything(
    plans: list[Plan], seed: int, version: str, policy: str, application: bool, places: int
) -> None:
    bridge = Moody(seed, application=application)
    smtpd = Smtpd(version, order=seed)
    with World(bridge, f'[failure.bridge]\ndefault = "{policy}"', smtpd=smtpd, places=places) as w:
        for number, plan in enumerate(plans):
            plan.play(smtpd.connect(), number)
        w.run(timeout=100_000.0)
        refusals = [f for f in w.faults if " is refused: " not in f.reason]
        assert refusals == []  # smtpd's word for a rewrite that is no address
        assert smtpd.open_requests == []
        assert w.counts.get("internal-error", 0) == 0
        check(w, policy, bridge.results, [each for plan in plans for each in plan.sent])


UNJUDGED = re.compile(
    rb"(X-Unscanned: bridge: [^\n]+\n)?(X-Spam: Yes\n)?Received: [^\n]+\n(\t[^\n]+\n)+"
    rb"(Subject: .*)",
    re.DOTALL,
)


def check(world: World, policy: str, results: set[bytes], sent: list[Sent]) -> None:
    """Each message was delivered once if its client was told so, and else not at all; as some
    bridge wanted it, or as it came where the policy lets it pass."""
    delivered: list[bytes] = []
    for message in world.delivered:
        if message.content not in results:
            assert (match := UNJUDGED.fullmatch(message.content))
            assert match[4] in [each.content for each in sent]
            assert policy == ("accept-header" if match[1] else "accept")
        tag = re.search(rb"^Subject: (\S+)$", message.content, re.MULTILINE)
        assert tag
        delivered.append(tag[1])
    for each in sent:
        reply = each.outcome.reply
        assert reply is not None
        assert delivered.count(each.tag) == (each.complete and reply.code == 250)
