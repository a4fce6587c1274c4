"""Which open request goes to which bridge, when, and how often.

Keeps every open request from the moment smtpd asked until it is answered; a bridge is only
a name with a grant here.  Pure: time is passed in, nothing is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from bridge.fair import FairQueue
from bridge.smtpd.items import MESSAGE, Slot

# A request that was open when this many bridges died is not sent again: it may be what
# they die of.
MAX_ATTEMPTS = 3
# From this attempt on a request is a suspect: a bridge has one of them at a time, so that the
# next death tells who it was ...
SUSPECT = 2
# ... and for so many seconds after a death nothing beside it.  Not longer: with one that kills
# there are others, and everything else would wait for all of them.
ALONE_FOR = 5.0
# A message that is too large for what is left of a grant is overtaken by smaller ones for so
# many seconds, by much smaller ones for so many more, and then by none.
KEEP_FREE, KEEP_ALL = 3.0, 10.0
LITTLE = 128  # what is much smaller: the grant's 128th part
LARGE = 512 * 1024  # bytes from which on messages wait in a queue of their own
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
    torn: bool = False  # what was sent was not the whole message


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
        self._queues: tuple[FairQueue[Pending], ...] = (FairQueue(), FairQueue(), FairQueue())
        self._suspects: dict[int, Pending] = {}  # wherever they are, and in no queue
        self._died = -ALONE_FOR  # when a bridge died last, of something
        self._kept: Pending | None = None  # the message that a bridge is kept free for
        self._keeper: Lane | None = None  # that bridge
        self._kept_at = 0.0  # since when
        self._large_first = False  # whose turn it is
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
        """Where it waits when it is with no bridge: commands, messages, large messages."""
        return self._queues[(item.slot.phase == MESSAGE) + (item.size >= LARGE)]

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
        if lane is self._keeper:
            self._kept = self._keeper = None
        for item in [item for item in self.pending.values() if item.lane is lane]:
            self._leave(item)
            if not lane.draining:
                item.attempt += 1
                self._died = now
            if item.attempt >= SUSPECT:
                self._suspects[item.id] = item
            else:
                self._queue(item).put_back(item.id, item.peer, item)
            if item.attempt >= MAX_ATTEMPTS:
                given_up.append(item)
        return given_up

    def send(self, item: Pending, lane: Lane) -> None:
        """It was handed to a bridge."""
        lane.add(item, 1)
        item.lane, item.torn = lane, False
        if item is self._kept:
            self._kept = self._keeper = None
        queue = self._queue(item)
        queue.drop(item.id, item.peer)
        queue.opened(item.peer)

    def next_for(self, lane: Lane, now: float) -> Pending | None:
        """The request to send to this bridge next: suspects one at a time, then commands before
        messages, each fair between peers, within what the bridge has granted."""
        if lane.draining:
            return None
        if self._suspects:
            waiting = [item for item in self._suspects.values() if item.lane is None]
            suspect = min(waiting, key=lambda item: item.id, default=None)
            has_one = any(item.lane is lane for item in self._suspects.values())
            may_die = now - self._died < ALONE_FOR
            if may_die and (has_one or (suspect is not None and lane.open)):
                return None
            if suspect is not None and not has_one and lane.has_room(suspect):
                return suspect
        item = None
        if lane.open - lane.open_messages < lane.commands:
            item = self._queues[0].choose(lane.has_room)
        if item is None and lane.open_messages < lane.slots:
            item = self._message_for(lane, now)
        return item

    def _message_for(self, lane: Lane, now: float) -> Pending | None:
        """The message to send to this bridge next."""
        kept = self._kept
        if kept is not None and (kept.lane is not None or kept.id not in self.pending):
            kept = self._kept = self._keeper = None
        if kept is not None and lane.has_room(kept):
            return kept
        if self._keeper is not None and self._keeper.draining:
            self._keeper = lane

        def fits(item: Pending) -> bool:
            if self._kept is None and now - item.since > KEEP_FREE and not lane.has_room(item):
                self._kept, self._keeper, self._kept_at = item, lane, now
            if self._kept is not None and self._keeper is lane:
                late = now - self._kept_at > KEEP_ALL
                if late or item.size * LITTLE > lane.bytes:
                    return False
            return lane.has_room(item)

        _, messages, large = self._queues
        self._large_first = not self._large_first
        for queue in (large, messages) if self._large_first else (messages, large):
            if (item := queue.choose(fits)) is not None:
                return item
        return None

    def recount(self, lanes: Iterable[Lane]) -> None:
        """Something has failed, perhaps in the middle of a change: count anew from what is
        open.  lanes: the bridges that there are; what others had is to be sent again."""
        there = list(lanes)
        queues: tuple[FairQueue[Pending], ...] = (FairQueue(), FairQueue(), FairQueue())
        self._queues, self._kept, self._keeper = queues, None, None
        for lane in there:
            lane.open = lane.open_messages = lane.open_bytes = 0
        for item in self.pending.values():
            if not any(item.lane is lane for lane in there):
                item.lane = None
            if item.lane is not None:
                item.lane.add(item, 1)
                self._queue(item).opened(item.peer)
            elif item.id not in self._suspects:
                self._queue(item).add(item.id, item.peer, item)
        for id in [id for id in self._suspects if id not in self.pending]:
            del self._suspects[id]
        self._deadlines = [(item.deadline, item.id) for item in self.pending.values()]
        heapify(self._deadlines)
