"""Progress of a call: a bar per stage on a terminal, or the caller's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = None | bool | Callable[[str, int, int], None]
"""None or False: silent. True: bars, if stderr is a terminal. A function: called with (stage, done, total)."""


def check(progress: Progress) -> None:
    """Raises `ValueError` unless `progress` is one of the kinds above."""
    if not (callable(progress) or progress is None or isinstance(progress, bool)):
        raise ValueError(f"progress is {progress!r}: it must be None, True, False or a function (stage, done, total)")


@contextmanager
def reporter(progress: Progress) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) for the stages to call, whatever `progress` is.

    Raises:
      ValueError: `progress` is none of the kinds above.
    """
    check(progress)
    if callable(progress):
        yield progress
    elif progress is None or progress is False or (progress is True and not sys.stderr.isatty()):
        yield lambda stage, done, total: None
    else:
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()


class _Bars:
    """One tqdm bar per stage, begun anew when a stage begins again."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        bar = self._bars.get(stage)
        if bar is None:
            bar = self._bars[stage] = tqdm(total=total, initial=done, desc=stage, position=len(self._bars))
        elif bar.total != total or done < bar.n:
            bar.reset(total)
        bar.update(done - bar.n)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        self._bars = {}
