"""Which open request goes to which bridge, when, and how often.

Keeps every open request from the moment smtpd asked until it is answered; a bridge is only
a name with a grant here.  Pure: time is passed in, nothing is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from bridge.fair import FairQueue
from bridge.smtpd.items import MESSAGE, Slot

# A request that was open when this many bridges died is not sent again: it may be what
# they die of.
MAX_ATTEMPTS = 3
# From this attempt on a request is sent alone, so that the next death tells who it was...
SUSPECT = 2
# ... but does not keep the others waiting longer than this.
ALONE_FOR = 5.0
SLACK = 64  # deadlines of requests that are answered, which are let be


@dataclass(slots=True, eq=False)
class Pending:
    """A request that is not answered yet."""

    id: int
    slot: Slot
    since: float  # when it came
    deadline: float
    size: int  # of the message, 0 for a command
    peer: str  # who shares a queue with others fairly
    attempt: int = 0  # how many bridges have died of it, or with it
    lane: Lane | None = None  # where it was sent
    sent_at: float = 0.0
    suspect_since: float = 0.0


@dataclass(slots=True, eq=False)
class Lane:
    """One bridge, as far as the choice is concerned."""

    slots: int = 0  # how many messages it wants at once, 0 until its hello
    commands: int = 0  # how many commands, beside them
    bytes: int = 0  # how many bytes of messages it wants at once
    draining: bool = False  # it takes no new requests
    open: int = 0  # how many requests it has
    open_messages: int = 0  # how many of them are messages
    open_bytes: int = 0

    def has_room(self, item: Pending) -> bool:
        """Would it take this request now?  Commands have room of their own: they wait for the
        DNS, which any stranger can make slow for his addresses, and messages don't."""
        if item.slot.phase != MESSAGE:
            return self.open - self.open_messages < self.commands
        if self.open_messages >= self.slots:
            return False
        # A message larger than the grant goes when there is no other.
        return not self.open_bytes or self.open_bytes + item.size <= self.bytes

    def add(self, item: Pending, sign: int) -> None:
        """Count a request that comes, by 1, or goes, by -1."""
        messages = self.open_messages + (sign if item.slot.phase == MESSAGE else 0)
        size = self.open_bytes + sign * item.size
        self.open, self.open_messages, self.open_bytes = self.open + sign, messages, size


class Dispatcher:
    """The open requests of one shim."""

    def __init__(self) -> None:
        self.pending: OrderedDict[int, Pending] = OrderedDict()  # in the order of arrival
        self._of_session: dict[str, Pending] = {}  # a session asks one thing at a time
        self._commands: FairQueue[Pending] = FairQueue()  # those that are with no bridge
        self._messages: FairQueue[Pending] = FairQueue()
        self._suspects: dict[int, Pending] = {}  # wherever they are
        self._deadlines: list[tuple[float, int]] = []  # a heap, also of some that are answered
        self._next_id = 1

    def add(self, slot: Slot, now: float, deadline: float) -> Pending:
        """Take a request in."""
        size = slot.message.size if slot.message is not None else 0
        item = Pending(self._next_id, slot, now, deadline, size, slot.session.peer)
        self._next_id += 1
        heappush(self._deadlines, (deadline, item.id))
        self.pending[item.id] = item
        self._of_session[slot.session.id] = item
        self._queue(item).add(item.id, item.peer, item)
        return item

    def _queue(self, item: Pending) -> FairQueue[Pending]:
        return self._messages if item.slot.phase == MESSAGE else self._commands

    def get(self, id: object) -> Pending | None:
        """The request of an id, None if it is not open."""
        return self.pending.get(id) if type(id) is int else None  # true is none

    def of_session(self, session: str) -> Pending | None:
        """The open request of a session."""
        return self._of_session.get(session)

    def done(self, item: Pending) -> None:
        """It is answered, or needs no answer any more."""
        if self.pending.pop(item.id, None) is None:
            return
        self._suspects.pop(item.id, None)
        if self._of_session.get(item.slot.session.id) is item:
            del self._of_session[item.slot.session.id]
        if item.lane is None:
            self._queue(item).drop(item.id, item.peer)
        else:
            self._leave(item)

    def expired(self, now: float) -> list[Pending]:
        """Requests whose deadline has passed."""
        first = self.next_deadline()
        if first is None or first > now:
            return []
        return [item for item in self.pending.values() if item.deadline <= now]

    def next_deadline(self) -> float | None:
        """The next deadline."""
        if len(self._deadlines) > 2 * len(self.pending) + SLACK:
            self._deadlines = [(item.deadline, item.id) for item in self.pending.values()]
            heapify(self._deadlines)
        while self._deadlines and self._deadlines[0][1] not in self.pending:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _leave(self, item: Pending) -> None:
        lane = item.lane
        if lane is not None:
            item.lane = None
            lane.add(item, -1)
            self._queue(item).closed(item.peer)

    # Lanes --------------------------------------------------------------------------------

    def lost(self, lane: Lane, now: float) -> list[Pending]:
        """A bridge is gone: its requests are to be sent again, but for those returned, which
        have seen too many die.  One that was draining did not die of anything."""
        given_up = []
        for item in [item for item in self.pending.values() if item.lane is lane]:
            self._leave(item)
            self._queue(item).put_back(item.id, item.peer, item)
            item.attempt += not lane.draining
            if item.attempt >= SUSPECT:
                self._suspects[item.id] = item
            if item.attempt == SUSPECT:
                item.suspect_since = now
            if item.attempt >= MAX_ATTEMPTS:
                given_up.append(item)
        return given_up

    def send(self, item: Pending, lane: Lane, now: float) -> None:
        """It was handed to a bridge."""
        lane.add(item, 1)
        item.lane, item.sent_at = lane, now
        queue = self._queue(item)
        queue.drop(item.id, item.peer)
        queue.opened(item.peer)

    def next_for(self, lane: Lane, now: float) -> Pending | None:
        """The request to send to this bridge next: suspects alone, then commands before
        messages, each fair between peers, within what the bridge has granted."""
        if lane.draining or not (self._commands or self._messages):
            return None
        suspects = [item for item in self._suspects.values() if item.lane is None]
        suspect = min(suspects, key=lambda item: item.id, default=None)
        if lane.open and self._alone(lane, suspect, now):
            return None
        if suspect is not None and lane.has_room(suspect):
            return suspect
        item = None
        if lane.open - lane.open_messages < lane.commands:
            item = self._commands.choose(lane.has_room)
        if item is None and lane.open_messages < lane.slots:
            item = self._messages.choose(lane.has_room)
        return item

    def _alone(self, lane: Lane, suspect: Pending | None, now: float) -> bool:
        """Must nothing be added to what the bridge has: a suspect waits for it to be empty,
        or is there alone?"""
        if suspect is not None and now - suspect.suspect_since < ALONE_FOR:
            return True
        return any(
            item.lane is lane and now - item.sent_at < ALONE_FOR for item in self._suspects.values()
        )
