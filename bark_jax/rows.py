"""Which request has which row of a batch, and who comes next. Numbers only: knows no device, no network and no stage.

    requests ─ admit ─▶ free rows ─ (a stage works) ─▶ release ─▶ free again; when nobody waits: narrow

A batch has few rows and a call may have a thousand requests, which end at different times: a row that is free is given
to the next request, so that the device stays full. When none is left, the batch becomes narrower, row counts going down
by `NARROWER`: every row count is a program of its own, and takes its time to compile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

NARROWER = 4
"""What a batch's row count is divided by when so few of its rows are left in use."""

TOGETHER = {"cpu": 1}
"""Rows that a pass over whole prompts or windows computes at once, by platform. On CPUs one such pass keeps all cores
busy, and a second row would only be waste where a single one needs it."""
TOGETHER_ELSEWHERE = 8


def together(rows: int, platform: str) -> int:
    """How many rows of a batch of `rows` one pass over prompts or windows takes."""
    return min(rows, TOGETHER.get(platform, TOGETHER_ELSEWHERE))


class Pass(NamedTuple):
    """Rows that are computed at once, G of them; those that only fill up have nobody, and are not to be kept."""

    owners: list[int | None]
    """The request of each."""
    requests: list[int]
    """The same, with somebody's number in place of nobody's: to look things up."""
    rows: np.ndarray
    """(G,) int32, which rows of the batch they are."""
    chosen: np.ndarray
    """(G,) bool, whether they are to be kept."""


class Rows:
    """The rows of one batch. The same calls give the same rows, whatever ran before.

    Args:
      requests: numbers of the requests, in the order in which they are served.
      count: rows of the batch.
      narrows: whether the batch may become narrower than `count`. Without it every request sees the same row count.
    """

    def __init__(self, requests: Iterable[int], count: int, *, narrows: bool):
        self.owners: list[int | None] = [None] * count
        """The request of each row; None: nobody's."""
        self._waiting = deque(requests)
        self._narrows = narrows

    def __len__(self) -> int:
        return len(self.owners)

    @property
    def owned(self) -> dict[int, int]:
        """Rows in use, and the request of each."""
        return {row: owner for row, owner in enumerate(self.owners) if owner is not None}

    @property
    def requests(self) -> list[int]:
        """The request of each row, and 0 where it is nobody's: to look things up."""
        return [0 if owner is None else owner for owner in self.owners]

    def passes(self, rows: Sequence[int], size: int) -> Iterator[Pass]:
        """Rows in use, `size` at a time."""
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            missing = size - len(part)
            owned = self.owned
            requests = [owned[row] for row in part]
            yield Pass(
                owners=[*requests, *[None] * missing],
                requests=requests + requests[:1] * missing,
                rows=np.array([*part, *[0] * missing], np.int32),
                chosen=np.arange(size) < len(part),
            )

    def admit(self) -> list[int]:
        """Give the free rows to those who wait; the rows that were given."""
        given = []
        for row, owner in enumerate(self.owners):
            if owner is None and self._waiting:
                self.owners[row] = self._waiting.popleft()
                given.append(row)
        return given

    def release(self, request: int) -> None:
        """A request is complete; its row is free."""
        self.owners[self.owners.index(request)] = None

    def narrow(self) -> list[int] | None:
        """Make the batch as narrow as it may be: the rows to keep, in their new order; None: it stays as it is."""
        count, busy = len(self.owners), list(self.owned)
        if self._waiting or not self._narrows:
            return None
        while count >= NARROWER and len(busy) <= count // NARROWER:
            count //= NARROWER
        if count == len(self.owners):
            return None
        free = [row for row, owner in enumerate(self.owners) if owner is None]
        kept = sorted([*busy, *free[: count - len(busy)]])
        self.owners = [self.owners[row] for row in kept]
        return kept
