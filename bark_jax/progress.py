"""Progress of a call: a bar per stage on a terminal, or the caller's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = None | bool | Callable[[str, int, int], None]
"""None or False: silent. True: bars, if stderr is a terminal. A function: called with (stage, done, total)."""


@contextmanager
def reporter(progress: Progress) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) for the stages to call, whatever `progress` is.

    Raises:
      ValueError: `progress` is none of the kinds above.
    """
    if callable(progress):
        yield progress
    elif progress is None or progress is False or (progress is True and not sys.stderr.isatty()):
        yield lambda stage, done, total: None
    elif progress is True:
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()
    else:
        raise ValueError(f"progress is {progress!r}: it must be None, True, False or a function (stage, done, total)")


class _Bars:
    """One tqdm bar, begun anew for each stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage or self._bar is None or self._bar.total != total or done < self._bar.n:
            self.close()
            self._stage, self._bar = stage, tqdm(total=total, desc=stage, leave=True)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
