"""Which voices are presets, and which clip of each: ``python -m recipes.bark_nano.prompts --model WORK/bark-nano``.

    rows of Kokoro's English voices ─▶ clips of 2.5 to 8 s ─▶ the most typical ones (GE2E of their last 2 s)
    ─▶ each is the prompt of the same sentences ─▶ whisper, GE2E ─▶ WORK/prompts.jsonl, a line each
    ─▶ the best clip of each voice ─▶ made/prompts.json, the voices that are not taken for one another

The best prompt is that after which words are understood and the voice is the voice. All typical clips of a voice say
the first sentences, the best few say the others too. Voices that are near each other are one choice for a user, not
two. The sentences are of the corpus's validation rows: none is among those that `evaluate speech` judges by. What is in
``prompts.jsonl`` is not said again: another model needs another ``WORK``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

import bark_jax
from bark_jax import judges
from bark_jax.audio import resample
from bark_jax.files import replacing
from recipes.bark_nano import corpus, gpts, listen, run
from recipes.bark_nano.speech import RATE, ROWS

N_CLIPS, N_FIRST, N_TEXTS, N_KEPT = 4, 4, 12, 2
"""Clips of a voice that are tried; sentences that all of them say; all sentences; clips that say all of them."""
N_OF_A_SEX = 4
"""Presets that are female, and that are male."""
TAIL_S = 2.0
"""What coarse hears of a prompt."""


def texts(rows: Path, n: int) -> list[str]:
    """Sentences of validation rows of all voices but the bulk's, `n` over all lengths, short and long ones mixed."""
    found: set[str] = set()
    for file in sorted(rows.glob("said-*.parquet")):
        for row in pyarrow.parquet.read_table(file, columns=["voice", "split", "text"]).to_pylist():
            if row["split"] == "validation" and row["voice"] != corpus.BULK:
                found.add(row["text"])
    by_length = sorted(found, key=lambda text: (len(text), text))
    if len(by_length) < n:
        raise ValueError(f"{rows} has {len(by_length)} validation sentences of its voices: {n} are needed")
    chosen = [by_length[(2 * i + 1) * len(by_length) // (2 * n)] for i in range(n)]
    stride = next(step for step in range(n // 2, 0, -1) if np.gcd(step, n) == 1)
    return [chosen[i * stride % n] for i in range(n)]


def score(said: Sequence[Mapping[str, Any]]) -> float:
    """Likeness (GE2E, mean) less the share of wrong words; higher is better."""
    wrong, words = sum(row["wrong"] for row in said), sum(row["words"] for row in said)
    return float(np.mean([row["ge2e"] for row in said])) - wrong / max(1, words)


def best(said: Iterable[Mapping[str, Any]], n: int) -> list[str]:
    """Ids of the `n` clips with the highest `score`, the best first; of equals the first id."""
    by: dict[str, list[Mapping[str, Any]]] = {}
    for row in said:
        by.setdefault(row["id"], []).append(row)
    return sorted(by, key=lambda id: (-score(by[id]), id))[:n]


def distinct(said: Mapping[str, Sequence[Mapping[str, Any]]], n: int) -> list[str]:
    """`n` female and `n` male voices, of both accents each, with the most of `score` and of what is nearest to its own.

    Args:
      said: what each voice said with its best prompt, as many rows each; "like" of a row is its GE2E to all of them.

    Raises:
      ValueError: there are no such voices.
    """
    names = sorted(said)
    scores = np.array([score(said[name]) for name in names])
    like = np.array([[[row["like"][other] for row in said[name]] for other in names] for name in names])
    nearer = like[np.arange(len(names)), np.arange(len(names))][:, None] > like  # (voice, other, row)
    nearer |= np.eye(len(names), dtype=bool)[..., None]

    def sets(sex: str) -> np.ndarray:
        some = [i for i, name in enumerate(names) if name[1] == sex]
        found = [x for x in itertools.combinations(some, n) if len({names[i][0] for i in x}) == min(n, 2)]
        if not found:
            raise ValueError(f"{n} voices of a sex and of both accents are wanted: there are {', '.join(names)}")
        return np.array(found)

    male = sets("m")

    def best_with(female: np.ndarray) -> tuple[float, np.ndarray]:
        some = np.concatenate([np.tile(female, (len(male), 1)), male], axis=1)
        right = nearer[some[:, :, None], some[:, None]].all(axis=2).mean(axis=-1)
        sums = (scores[some] + right).sum(axis=1)
        return sums.max(), some[sums.argmax()]

    _, best = max(map(best_with, sets("f")), key=lambda pair: pair[0])
    return [names[i] for i in best]


class Hearing:
    """What is heard of an utterance: words, and how like a voice it is.

    Args:
      assets: folder with whisper-base.
      voices: for each voice, what the codec makes of its clips, (samples,) by id.
    """

    def __init__(self, assets: Path, voices: Mapping[str, Mapping[str, np.ndarray]]):
        self._whisper, self._speakers = listen.Whisper(assets), judges.Speakers()
        self._known = {
            voice: judges.mean_speaker([self._speakers(clip, RATE) for clip in clips.values()])
            for voice, clips in voices.items()
        }

    def typical(self, voice: str, clips: Mapping[str, np.ndarray], n: int) -> list[str]:
        """Ids of the `n` clips whose ends are most like the voice, the most like first."""
        like = {
            id: self._speakers(clip[-round(TAIL_S * RATE) :], RATE) @ self._known[voice] for id, clip in clips.items()
        }
        return sorted(clips, key=lambda id: (-like[id], id))[:n]

    def __call__(self, audio: np.ndarray, voice: str, text: str) -> dict[str, Any]:
        wanted = self._whisper.words(text)
        heard = self._whisper.words(self._whisper.hear(resample(audio, RATE, listen.RATE))) if len(audio) else []
        speaker = self._speakers(audio, RATE) if len(audio) else np.zeros_like(self._known[voice])
        like = {name: round(float(speaker @ known), 4) for name, known in self._known.items()}
        wrong = int(listen.errors(wanted, heard).sum())
        return {"words": len(wanted), "wrong": wrong, "ge2e": like[voice], "like": like}


def say(
    bark: bark_jax.Bark, hears: Hearing, prompts: Mapping[str, bark_jax.Voice], wanted: Sequence[tuple[str, str, str]]
) -> Iterator[dict[str, Any]]:
    """(voice, id of the prompt, text) → a row for each. A text has one seed for all prompts."""
    for start in range(0, len(wanted), ROWS):
        some = wanted[start : start + ROWS]
        said = bark.generate(
            [text for *_, text in some],
            voice=[prompts[id] for _, id, _ in some],
            seed=[zlib.crc32(text.encode()) for *_, text in some],
        )
        for (voice, id, text), speech in zip(some, said, strict=True):
            yield {"voice": voice, "id": id, "text": text} | hears(speech.audio, voice, text)
        print(f"{start + len(some):,} of {len(wanted):,} utterances", flush=True)


def choose(work: Path, assets: Path, rows: Path, model: str) -> dict[str, str]:
    """Try what was not tried yet; the voices, and the id of the best clip of each."""
    bark = bark_jax.load(model)
    clips = gpts.prompt_rows(rows)
    prompts = {row["id"]: gpts.as_voice(row, bark.config) for some in clips.values() for row in some}
    audio = {v: {row["id"]: bark.decode(prompts[row["id"]].fine) for row in some} for v, some in clips.items()}
    hears = Hearing(assets, audio)
    path = work / "prompts.jsonl"
    found = {(row["id"], row["text"]): row for row in corpus.read_lines(path)}

    def of(ids: Mapping[str, Sequence[str]], texts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """What the clips of each voice say."""
        wanted = [(voice, id, text) for text in texts for voice, some in ids.items() for id in some]
        with path.open("a", encoding="utf-8") as file:
            for row in say(bark, hears, prompts, [item for item in wanted if item[1:] not in found]):
                found[row["id"], row["text"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
        return {voice: [found[id, text] for id in some for text in texts] for voice, some in ids.items()}

    sentences = texts(rows, N_TEXTS)
    typical = {voice: hears.typical(voice, some, N_CLIPS) for voice, some in audio.items()}
    first = of(typical, sentences[:N_FIRST])
    good = of({voice: best(said, N_KEPT) for voice, said in first.items()}, sentences)
    chosen = {voice: best(said, 1)[0] for voice, said in good.items()}
    own = {voice: [row for row in said if row["id"] == chosen[voice]] for voice, said in good.items()}
    names = distinct(own, N_OF_A_SEX)
    for voice, said in good.items():
        nearest = np.mean([max(names, key=row["like"].__getitem__) == voice for row in own[voice]])
        print(
            f"{voice}: {chosen[voice]} {score(own[voice]):.3f}, all {N_KEPT} {score(said):.3f}"
            + (f", a preset, {nearest:.0%} nearest to it" if voice in names else "")
        )
    return {voice: chosen[voice] for voice in names}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.prompts", description="The presets.")
    parser.add_argument("--work", type=Path, default=corpus.WORK)
    parser.add_argument("--assets", type=Path, help="folder with whisper-base; default: WORK/assets")
    parser.add_argument("--model", default="bark-nano", help="what speaks: a folder; default: the one in the package")
    parser.add_argument(
        "--rows", type=Path, default=gpts.MADE / "rows", help="the corpus as tokens; default: made/rows"
    )
    options = parser.parse_args(argv)
    assets = options.assets or options.work / "assets"

    def step() -> None:
        chosen = choose(options.work, assets, options.rows, options.model)
        with replacing(gpts.PROMPTS) as part:
            part.write_text(json.dumps(chosen, indent=1) + "\n", "utf-8")

    return run(step)


if __name__ == "__main__":
    sys.exit(main())
