"""How much a way of speaking is like somebody, and how well it can be understood.

    texts ─▶ each way speaks them ─▶ OUT/WAY/*.flac ─▶ whose voice is it, what was heard, how long does it take
    recordings of the speaker, and of others ─▶ what is the most to be reached, and what is nothing

A way is a model with a voice or an adapter, such as before and after fine-tuning. Similarity is the cosine of GE2E
vectors to the mean of the speaker's recordings (`bark_jax.judges`). The *ceiling* is that of the speaker's own
recordings, each against the mean of the others; the *floor* that of other people's.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bark_jax import audio as audio_files
from bark_jax import clips
from bark_jax.bark import Bark
from bark_jax.files import new_folder
from bark_jax.judges import Listener, Speakers, mean_speaker
from bark_jax.settings import Sampling

TEXTS = (
    "The shop on the corner opens at nine and closes late.",
    "Could you tell me which platform the next train leaves from?",
    "She put the kettle on and looked out at the rain.",
    "My sister has lived in a small town by the sea for years.",
    "Please remember to lock the door when you leave.",
    "They walked along the river until it was too dark to see.",
    "I would rather have soup than another sandwich today.",
    "The children found an old map under the floor.",
    "What a surprise, I did not think you would come!",
    "He repaired the clock himself with a screwdriver and some patience.",
    "We can meet on Thursday morning, if that suits you.",
    "A yellow bird sat on the fence and sang for an hour.",
    "The doctor said that everything would be fine by spring.",
    "Nobody knew how the cat had opened the window.",
    "It costs less to go by bus, but it takes twice as long.",
    "Her voice was quiet, and yet everybody listened.",
    "Turn left after the bridge and keep going up the hill.",
    "The lights went out just before the end of the film.",
    "I have never tasted bread as good as this.",
    "Thank you for waiting, the manager will see you now.",
)
"""What is spoken unless other texts are given: everyday English."""
LEAST_S = 1.0
"""Of a recording: less tells little of a voice."""
MAX_RECORDINGS = 100
"""Of one speaker that are listened to, evenly chosen."""


_DEFAULT = Sampling()


@dataclass(frozen=True)
class Way:
    """A way of speaking."""

    bark: Bark
    voice: Any = None
    """As for `Bark.generate`."""
    adapter: str | None = None


@dataclass(frozen=True)
class Score:
    """What was measured of one way."""

    similarity: float
    """Mean over clips, -1 to 1."""
    margin: float
    """Half of a 95 % confidence interval of it (1.96 standard errors)."""
    gap_closed: float | None
    """Of the gap between the first way and the ceiling; None for the first way itself."""
    wer: float | None
    """Percent of the words; None: nobody listened."""
    seconds: float
    """Mean duration."""
    clips: int


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has found."""

    scores: dict[str, Score]
    """Way → its scores, in the order that was given."""
    ceiling: float
    floor: float | None
    folder: Path

    def table(self) -> str:
        """For people."""
        head = ["", "similarity", "±", "gap closed", "WER %", "seconds"]
        rows = [
            [
                name,
                f"{score.similarity:.3f}",
                f"{score.margin:.3f}",
                "" if score.gap_closed is None else f"{score.gap_closed:.0%}",
                "" if score.wer is None else f"{score.wer:.1f}",
                f"{score.seconds:.1f}",
            ]
            for name, score in self.scores.items()
        ]
        rows.append(["the speaker's recordings", f"{self.ceiling:.3f}", "", "", "", ""])
        if self.floor is not None:
            rows.append(["other people's", f"{self.floor:.3f}", "", "", "", ""])
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in [head, *rows]
        ]
        return "\n".join(line.rstrip() for line in lines)


def evaluate(
    ways: Mapping[str, Way],
    speaker: str | Path,
    out: str | Path,
    *,
    others: Sequence[str | Path] = (),
    texts: Sequence[str] = TEXTS,
    takes: int = 1,
    seed: int = 0,
    sampling: Sampling = _DEFAULT,
    listener: Listener | None = None,
    log: Any = None,
) -> Evaluation:
    """Let every way speak every text, and compare the voices with a speaker's.

    Args:
      ways: name → way, the one to be compared with first ("before", "after").
      speaker: folder of recordings of the speaker, two or more, that nothing was trained on; of each, what is speech in
        its first minute counts.
      out: a new folder, for the audio, ``evaluation.json`` and ``evaluation.png``.
      others: folders of other people's recordings, one for each.
      texts: what is said.
      takes: how often each is said, with seeds from `seed` on; all ways have the same seeds.
      listener: who writes down what is heard; None: words are not judged.
      log: called with a line of progress.

    Raises:
      ValueError: no ways, no texts, too few recordings, or a name that is no file name.
      OSError: a folder that is missing, or `out` is not new.
      ModuleNotFoundError: Resemblyzer is not installed.
    """
    log = log or (lambda line: None)
    _check(ways, texts, takes)
    speakers = Speakers()
    own = _voices(Path(speaker), speakers, least=2)
    target = mean_speaker(own)
    ceiling = statistics.mean(float(one @ mean_speaker([*own[:i], *own[i + 1 :]])) for i, one in enumerate(own))
    strangers = [vector for folder in others for vector in _voices(Path(folder), speakers, least=1)]
    floor = statistics.mean(float(one @ target) for one in strangers) if strangers else None
    lines = [text for text in texts for _ in range(takes)]
    seeds = list(range(seed, seed + len(lines)))
    rows: list[dict[str, Any]] = []
    with new_folder(Path(out)) as folder:
        for name, way in ways.items():
            log(f"{name}: {len(lines)} clips")
            made = way.bark.generate(lines, voice=way.voice, adapter=way.adapter, seed=seeds, sampling=sampling)
            (folder / name).mkdir()
            for i, (text, one) in enumerate(zip(lines, made, strict=True)):
                audio_files.write(folder / name / f"{i:03d}.wav", one.audio, one.sample_rate, subtype="pcm16")
                wrong, words = listener.wrong(text, one.audio, one.sample_rate) if listener else (0, 0)
                rows.append(
                    {
                        "way": name,
                        "text": text,
                        "seed": seeds[i],
                        "similarity": float(speakers(one.audio, one.sample_rate) @ target),
                        "wrong": wrong,
                        "words": words,
                        "seconds": one.duration,
                    }
                )
        scores = score(rows, ceiling)
        tree = {"ceiling": ceiling, "floor": floor, "ways": {k: asdict(v) for k, v in scores.items()}, "clips": rows}
        (folder / "evaluation.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _picture(folder / "evaluation.png", rows, ceiling, floor)
    return Evaluation(scores, ceiling, floor, Path(out))


def score(rows: Sequence[Mapping[str, Any]], ceiling: float) -> dict[str, Score]:
    """Scores of the ways in clips' rows, in the order in which they come."""
    scores: dict[str, Score] = {}
    for name in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == name]
        likeness = [row["similarity"] for row in own]
        mean, words = statistics.mean(likeness), sum(row["words"] for row in own)
        closed = None
        if scores:
            first = next(iter(scores.values())).similarity
            closed = (mean - first) / (ceiling - first) if ceiling > first else None
        scores[name] = Score(
            similarity=mean,
            margin=1.96 * statistics.stdev(likeness) / len(likeness) ** 0.5 if len(likeness) > 1 else 0.0,
            gap_closed=closed,
            wer=100 * sum(row["wrong"] for row in own) / words if words else None,
            seconds=statistics.mean(row["seconds"] for row in own),
            clips=len(own),
        )
    return scores


def _check(ways: Mapping[str, Way], texts: Sequence[str], takes: int) -> None:
    if not ways:
        raise ValueError("there are no ways: give at least one, such as {'before': Way(bark)}")
    for name in ways:
        if not name or not all(sign.isalnum() or sign in "-_ +" for sign in name):
            raise ValueError(f"a way is called {name!r}: its name must be of letters, digits, -, _, + and spaces")
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts is {texts!r}: it must be a list of at least one text")
    if isinstance(takes, bool) or not isinstance(takes, int) or takes < 1:
        raise ValueError(f"takes is {takes!r}: it must be an integer of 1 or more")


def _voices(folder: Path, speakers: Speakers, *, least: int) -> list[np.ndarray]:
    """The vectors of a folder's recordings."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: it must hold recordings of one speaker")
    files = audio_files.recordings(folder)
    if len(files) > MAX_RECORDINGS:
        files = [files[i * len(files) // MAX_RECORDINGS] for i in range(MAX_RECORDINGS)]
    found, short = [], 0
    for path in files:
        rate, audio = audio_files.read_channels(path, mix=True)
        spoken = [span.of(audio, rate) for span in clips.cut(audio[: 60 * rate], rate, 14.0)]
        whole = np.concatenate([np.zeros(0, np.float32), *spoken])
        if len(whole) < LEAST_S * rate:
            short += 1
            continue
        found.append(speakers(whole, rate))
    if len(found) < least:
        left = f", and {short} with less than {LEAST_S:g} s of speech" if short else ""
        raise ValueError(f"{folder} has {len(found)} recordings of speech{left}: it must have {least} or more")
    return found


def _picture(path: Path, rows: Sequence[Mapping[str, Any]], ceiling: float, floor: float | None) -> None:
    """How like the speaker the clips of each way are."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:  # the figures are in the JSON
        return
    names = list(dict.fromkeys(row["way"] for row in rows))
    figure = Figure(figsize=(2 + 1.6 * len(names), 4), layout="constrained")
    axes = figure.subplots()
    axes.boxplot([[row["similarity"] for row in rows if row["way"] == name] for name in names])
    axes.set_xticks(range(1, len(names) + 1), names)
    axes.axhline(ceiling, color="tab:green", label="the speaker's recordings")
    if floor is not None:
        axes.axhline(floor, color="tab:red", label="other people's")
    axes.set(ylabel="similarity (GE2E cosine)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
