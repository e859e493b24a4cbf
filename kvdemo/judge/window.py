"""The last readings of one address, between which rates are made. Pure.

A reading that another process gave, or in which a counter fell, begins anew: nothing is counted across it.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from kvdemo.judge.scrape import Scrape, went_back


class Break(StrEnum):
    """Why a reading has nothing to do with the one before it."""

    NONE = ""
    RESTARTED = "restarted"
    FELL = "counters went back"


class Window:
    """Keeps the readings of at least ``length`` seconds, as soon as there are so many."""

    def __init__(self, length: float) -> None:
        self.length = length
        self.readings: deque[Scrape] = deque()
        self._earlier: set[tuple[float | None, ...]] = set()
        self._several = False

    def add(self, reading: Scrape) -> Break:
        """Take a reading, later than all before it; why it is no continuation of them."""
        broken = self._broken(reading)
        if broken:
            birth = self.readings[-1].birth
            if birth and birth != reading.birth:
                self._earlier.add(birth)
            self.readings.clear()
        self._several = self._several or reading.birth in self._earlier
        self.readings.append(reading)
        while len(self.readings) > 2 and reading.at - self.readings[1].at >= self.length:
            self.readings.popleft()
        if reading.at - self.readings[0].at >= self.length:
            self._several, self._earlier = False, set()
        return broken

    def _broken(self, reading: Scrape) -> Break:
        if not self.readings:
            return Break.NONE
        last = self.readings[-1]
        if reading.birth != last.birth:
            return Break.RESTARTED
        return Break.FELL if went_back(last, reading) else Break.NONE

    @property
    def several(self) -> bool:
        """Whether processes answer in turn: one came back after another had answered. Forgotten once one has stayed."""
        return self._several

    @property
    def first(self) -> Scrape | None:
        """Where the window begins; None before there are two readings."""
        return self.readings[0] if len(self.readings) > 1 else None

    @property
    def previous(self) -> Scrape | None:
        """The reading before the last one."""
        return self.readings[-2] if len(self.readings) > 1 else None

    @property
    def last(self) -> Scrape:
        """The newest reading. Raises IndexError without any."""
        return self.readings[-1]
