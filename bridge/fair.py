"""Who is next of many that wait: the one whose peer has the fewest open, in the order of
arrival among equals.

Knows numbers, peers by name and whether something fits; what waits, and for what, is
dispatch.py's.  Looks at few of those that wait, however many they are, and never sorts them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK = 64  # at so many that don't fit, before it is given up for now
# Each so-many-th goes to who has waited longest: peers that come anew all the time, each with
# nothing open, would keep one who has something from ever getting more.
OLDEST = 4
SLACK = 64  # stale entries that are let be


class FairQueue(Generic[T]):
    """What waits, by number; numbers are given in the order of arrival."""

    def __init__(self) -> None:
        self._items: OrderedDict[int, T] = OrderedDict()
        self._by_peer: dict[str, OrderedDict[int, T]] = {}  # the same
        self._open: dict[str, int] = {}  # how many of a peer are being worked on
        # How many are open, the number of the first that waits, the peer; an entry is stale
        # when one of them has changed, and a new one is there.
        self._heap: list[tuple[int, int, str]] = []
        self._torn = False  # something has failed while the heap was being changed
        self._taken = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, number: int, peer: str, item: T) -> None:
        """Let it wait, at the end."""
        self._items[number] = item
        self._by_peer.setdefault(peer, OrderedDict())[number] = item
        self._note(peer)

    def put_back(self, number: int, peer: str, item: T) -> None:
        """Let it wait where it was; costs as much as there are that wait."""
        for items in (self._items, self._by_peer.setdefault(peer, OrderedDict())):
            items[number] = item
            for later in [other for other in items if other > number]:
                items.move_to_end(later)
        self._note(peer)

    def drop(self, number: int, peer: str) -> None:
        """It waits no more."""
        self._items.pop(number, None)
        if (of_peer := self._by_peer.get(peer)) is None:
            return
        of_peer.pop(number, None)
        if of_peer:
            self._note(peer)
        else:
            del self._by_peer[peer]

    def opened(self, peer: str) -> None:
        """One more of this peer is being worked on."""
        self._open[peer] = self._open.get(peer, 0) + 1
        self._taken += 1
        self._note(peer)

    def closed(self, peer: str) -> None:
        """One less is."""
        left = self._open.get(peer, 0) - 1
        if left > 0:
            self._open[peer] = left
        else:
            self._open.pop(peer, None)
        self._note(peer)

    def choose(self, fits: Callable[[T], bool]) -> T | None:
        """The next one of those that fit; it goes on waiting."""
        if not self._items:
            return None
        if self._taken % OLDEST == OLDEST - 1:
            oldest = next(iter(self._items.values()))
            if fits(oldest):
                return oldest
        if self._torn:
            self._rebuild()
        self._torn = True
        found, looked_at = self._first(fits)
        for entry in looked_at:
            heappush(self._heap, entry)
        self._torn = False
        return found

    def _first(self, fits: Callable[[T], bool]) -> tuple[T | None, list[tuple[int, int, str]]]:
        """The first that fits, and what was taken out of the heap to find it."""
        taken: list[tuple[int, int, str]] = []
        further: list[tuple[int, int, str]] = []  # a heap of those behind the first of a peer
        waiting: dict[str, Iterator[int]] = {}  # the numbers behind those that were looked at
        for _ in range(LOOK):
            while self._heap and (self._heap[0][2] in waiting or self._stale(self._heap[0])):
                heappop(self._heap)
            if further and (not self._heap or further[0] < self._heap[0]):
                open_, number, peer = heappop(further)
            elif self._heap:
                taken.append(entry := heappop(self._heap))
                open_, number, peer = entry
                waiting[peer] = iter(self._by_peer[peer])
                next(waiting[peer])
            else:
                break
            if fits(item := self._by_peer[peer][number]):
                return item, taken
            if (behind := next(waiting[peer], None)) is not None:
                heappush(further, (open_, behind, peer))
        return None, taken

    def _note(self, peer: str) -> None:
        if of_peer := self._by_peer.get(peer):
            torn, self._torn = self._torn, True
            heappush(self._heap, self._entry(peer, of_peer))
            self._torn = torn
        if len(self._heap) > 2 * len(self._by_peer) + SLACK:
            self._rebuild()

    def _entry(self, peer: str, of_peer: OrderedDict[int, T]) -> tuple[int, int, str]:
        return self._open.get(peer, 0), next(iter(of_peer)), peer

    def _stale(self, entry: tuple[int, int, str]) -> bool:
        of_peer = self._by_peer.get(entry[2])
        return not of_peer or entry != self._entry(entry[2], of_peer)

    def _rebuild(self) -> None:
        heap = [self._entry(peer, of_peer) for peer, of_peer in self._by_peer.items() if of_peer]
        heapify(heap)
        self._heap, self._torn = heap, False
