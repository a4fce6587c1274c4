"""Which open request goes to which bridge, when, and how often.

Keeps every open request from the moment smtpd asked until it is answered; a bridge is only
a name with a grant here.  Pure: time is passed in, nothing is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from bridge.smtpd.protocol import MESSAGE, Slot

# A request that was open when this many bridges died is not sent again: it may be what
# they die of.
MAX_ATTEMPTS = 3
# From this attempt on a request is sent alone, so that the next death tells who it was...
SUSPECT = 2
# ... but does not keep the others waiting longer than this.
ALONE_FOR = 5.0


@dataclass(slots=True, eq=False)
class Pending:
    """A request that is not answered yet."""

    id: int
    slot: Slot
    since: float  # when it came
    deadline: float
    size: int  # of the message, 0 for a command
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


class Dispatcher:
    """The open requests of one shim."""

    def __init__(self) -> None:
        self.pending: OrderedDict[int, Pending] = OrderedDict()  # in the order of arrival
        self._of_session: dict[str, Pending] = {}  # a session asks one thing at a time
        self._sent = 0  # how many are with a bridge
        self._next_id = 1

    def add(self, slot: Slot, now: float, deadline: float) -> Pending:
        """Take a request in."""
        size = slot.message.size if slot.message is not None else 0
        item = Pending(self._next_id, slot, now, deadline, size)
        self._next_id += 1
        self.pending[item.id] = item
        self._of_session[slot.session.id] = item
        return item

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
        if self._of_session.get(item.slot.session.id) is item:
            del self._of_session[item.slot.session.id]
        self._leave(item)

    def expired(self, now: float) -> list[Pending]:
        """Requests whose deadline has passed."""
        return [item for item in self.pending.values() if item.deadline <= now]

    def next_deadline(self) -> float | None:
        """The next deadline."""
        return min((item.deadline for item in self.pending.values()), default=None)

    def _leave(self, item: Pending) -> None:
        if item.lane is not None:
            item.lane.open -= 1
            item.lane.open_messages -= item.slot.phase == MESSAGE
            item.lane.open_bytes -= item.size
            item.lane = None
            self._sent -= 1

    # Lanes --------------------------------------------------------------------------------

    def lost(self, lane: Lane, now: float) -> list[Pending]:
        """A bridge is gone: its requests are to be sent again, but for those returned, which
        have seen too many die.  One that was draining did not die of anything."""
        given_up = []
        for item in [item for item in self.pending.values() if item.lane is lane]:
            self._leave(item)
            item.attempt += not lane.draining
            if item.attempt == SUSPECT:
                item.suspect_since = now
            if item.attempt >= MAX_ATTEMPTS:
                given_up.append(item)
        return given_up

    def send(self, item: Pending, lane: Lane, now: float) -> None:
        """It was handed to a bridge."""
        item.lane, item.sent_at = lane, now
        lane.open += 1
        lane.open_messages += item.slot.phase == MESSAGE
        lane.open_bytes += item.size
        self._sent += 1

    def next_for(self, lane: Lane, now: float) -> Pending | None:
        """The request to send to this bridge next: suspects alone, then commands before
        messages, each in the order of arrival, within what the bridge has granted."""
        if lane.draining or len(self.pending) == self._sent:
            return None
        waiting = [item for item in self.pending.values() if item.lane is None]
        suspect = next((item for item in waiting if item.attempt >= SUSPECT), None)
        if lane.open and self._alone(lane, suspect, now):
            return None
        if suspect is not None and lane.has_room(suspect):
            return suspect
        commands = (item for item in waiting if item.slot.phase != MESSAGE)
        messages = (item for item in waiting if item.slot.phase == MESSAGE)
        command = next(commands, None)
        if command is not None and lane.has_room(command):
            return command
        return next((item for item in messages if lane.has_room(item)), None)

    def _alone(self, lane: Lane, suspect: Pending | None, now: float) -> bool:
        """Must nothing be added to what the bridge has: a suspect waits for it to be empty,
        or is there alone?"""
        if suspect is not None and now - suspect.suspect_since < ALONE_FOR:
            return True
        return any(
            item.lane is lane and item.attempt >= SUSPECT and now - item.sent_at < ALONE_FOR
            for item in self.pending.values()
        )
