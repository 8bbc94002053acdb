"""`bark_jax.evaluate`: the figures by hand; and the whole of it, where Resemblyzer is installed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bark_jax
import models
from bark_jax import cli, evaluate, judges
from test_clips import utterances
from test_train_prepare import RATE, put


def row(way: str, similarity: float, wrong: int = 0, words: int = 0, seconds: float = 1.0) -> dict[str, Any]:
    return {"way": way, "similarity": similarity, "wrong": wrong, "words": words, "seconds": seconds}


def test_scores_are_what_they_are_by_hand() -> None:
    rows = [row("before", 0.4, 1, 4), row("before", 0.6, 0, 4, 3.0), row("after", 0.7), row("after", 0.8)]
    scores = evaluate.score(rows, ceiling=0.9)
    assert list(scores) == ["before", "after"]
    before, after = scores.values()
    assert before.similarity == pytest.approx(0.5) and before.gap_closed is None
    assert before.margin == pytest.approx(1.96 * 0.1) and before.seconds == 2.0 and before.clips == 2
    assert before.wer == pytest.approx(12.5) and after.wer is None
    assert after.gap_closed == pytest.approx((0.75 - 0.5) / (0.9 - 0.5))
    assert evaluate.score([row("one", 0.95), row("two", 0.97)], ceiling=0.9)["two"].gap_closed is None
    found = evaluate.Evaluation(scores, 0.9, 0.3, Path("x"))
    lines = found.table().splitlines()
    assert len(lines) == 5 and "12.5" in lines[1] and "62%" in lines[2] and lines[4].startswith("other people's")


@pytest.mark.parametrize(
    ("wanted", "heard", "expected"),
    [("a b c", "a b c", [0, 0, 0]), ("a b c", "a x c", [0, 1, 0]), ("a b", "a b c d", [0, 2]), ("a b", "", [1, 1]),
     ("a", "b c", [2])],
)  # fmt: skip
def test_errors_are_at_their_words(wanted: str, heard: str, expected: list[int]) -> None:
    assert judges.errors(wanted.split(), heard.split()).tolist() == expected


def test_a_mean_speaker_is_of_length_1() -> None:
    a, b = np.eye(256)[:2]
    np.testing.assert_allclose(judges.mean_speaker([a, b]), (a + b) / np.sqrt(2))
    assert not judges.mean_speaker([0 * a]).any()


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    way = evaluate.Way(None)  # type: ignore[arg-type]
    for ways, options, words in (
        ({}, {}, "there are no ways"),
        ({"a/b": way}, {}, "a way is called 'a/b'"),
        ({"a": way}, {"texts": []}, "at least one text"),
        ({"a": way}, {"texts": "abc"}, "at least one text"),
        ({"a": way}, {"takes": 0}, "takes is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate.evaluate(ways, tmp_path, tmp_path / "out", **options)


def test_a_judge_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match="measuring speech needs resemblyzer: pip install --no-deps"):
        judges.Speakers()
    with pytest.raises(ModuleNotFoundError, match="measuring speech needs faster_whisper: pip install"):
        judges.Listener()


def test_two_ways_of_speaking_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("resemblyzer")
    folder = models.save_with_units(tmp_path / "model")
    for i in range(3):
        put(tmp_path / "me" / f"{i}.wav", utterances(0.2, 2.0 + 0.3 * i, 0.2, rate=RATE))
    other = (0.3 * np.sin(2 * np.pi * 150 * np.arange(3 * RATE) / RATE) ** 3).astype(np.float32)
    put(tmp_path / "you" / "0.wav", np.concatenate([0 * other[:RATE], other]))
    bark = bark_jax.load(folder)
    ways = {
        "one": evaluate.Way(bark),
        "two": evaluate.Way(bark, {**models.voice(bark.config), "model": bark.config.fingerprint}),
    }
    how = bark_jax.Sampling(max_duration_s=1.0)
    texts = ["ab cd", "ef"]
    found = evaluate.evaluate(
        ways, tmp_path / "me", tmp_path / "out", others=[tmp_path / "you"], texts=texts, takes=2, sampling=how
    )
    assert list(found.scores) == ["one", "two"] and found.scores["one"].clips == 4
    assert found.floor is not None and found.floor < found.ceiling <= 1.0001
    tree = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert len(tree["clips"]) == 8 and tree["ways"]["two"]["wer"] is None
    assert sorted(p.name for p in (tmp_path / "out" / "one").iterdir()) == [f"{i:03d}.wav" for i in range(4)]
    said = bark.generate("ab cd", seed=1, sampling=how).audio
    speakers = judges.Speakers()
    own = [speakers(bark_jax.audio.read(p, RATE), RATE) for p in sorted((tmp_path / "me").iterdir())]
    assert tree["clips"][1]["seed"] == 1
    assert tree["clips"][1]["similarity"] == pytest.approx(
        float(speakers(said, RATE) @ judges.mean_speaker(own)), abs=0.02
    )  # the recordings are cut to their speech first
    assert not speakers(np.zeros(RATE, np.float32), RATE).any()
    with pytest.raises(ValueError, match="has 1 recordings of speech: it must have 2"):
        evaluate.evaluate(ways, tmp_path / "you", tmp_path / "again", texts=texts)
    done = CliRunner().invoke(
        cli.main, ["evaluate", str(tmp_path / "me"), "-m", str(folder), "-o", str(tmp_path / "cli"), "-q"]
    )
    assert done.exit_code == 0 and "before" in done.output and "recordings" in done.output, done.output
