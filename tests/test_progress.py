"""Bars on a terminal: one per stage, however the stages take turns."""

from __future__ import annotations

import io
import sys

import pytest

from bark_jax.progress import reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_per_stage_and_none_beside_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr, expected in ((Terminal(), 2), (io.StringIO(), 0)):
        monkeypatch.setattr(sys, "stderr", stderr)
        with reporter(True) as report:
            for done in (8, 16, 16):
                report("semantic", done, 16)
                report("coarse", 2 * done, 32)
            bars = getattr(report, "_bars", {})
            assert {name: (bar.n, bar.total) for name, bar in bars.items()} == (
                {"semantic": (16, 16), "coarse": (32, 32)} if expected else {}
            )
            report("semantic", 3, 40)  # the next part of a long text
            assert [bar.n for bar in bars.values()] == ([3, 32] if expected else [])
        assert ("semantic" in stderr.getvalue()) == bool(expected)


def test_a_function_is_called_as_it_is() -> None:
    told: list[tuple[object, ...]] = []
    with reporter(lambda *news: told.append(news)) as report:
        report("fine", 1, 2)
    assert told == [("fine", 1, 2)]


@pytest.mark.parametrize("progress", [1, "yes"])
def test_anything_else_is_refused(progress: object) -> None:
    with pytest.raises(ValueError, match="it must be None, True, False or a function"), reporter(progress):  # type: ignore[arg-type]
        pass
