"""Which clip of a voice is its preset: ``python -m recipes.bark_nano.prompts --model bark-nano-work/bark-nano``.

    rows of the presets' voices ─▶ clips of 2.5 to 8 s ─▶ the most typical ones (GE2E of their last 2 s)
    ─▶ each is the prompt of the same sentences ─▶ whisper, GE2E ─▶ WORK/prompts.jsonl, a line each
    ─▶ made/prompts.json, the best clip of each voice

The best prompt is that after which words are understood and the voice is the voice. All typical clips of a voice say
the first sentences, the best few say the others too. The sentences are of the corpus's validation rows: none is among
those that `evaluate speech` judges by. What is in ``prompts.jsonl`` is not said again: another model needs another
``WORK``.
"""

from __future__ import annotations

import argparse
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

N_CLIPS, N_FIRST, N_TEXTS, N_KEPT = 6, 5, 13, 3
"""Clips of a voice that are tried; sentences that all of them say; all sentences; clips that say all of them."""
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
        like = float(self._speakers(audio, RATE) @ self._known[voice]) if len(audio) else 0.0
        return {"words": len(wanted), "wrong": int(listen.errors(wanted, heard).sum()), "ge2e": round(like, 4)}


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
    """Try what was not tried yet; the id of the best clip of each voice."""
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
    for voice, said in good.items():
        its = score([row for row in said if row["id"] == chosen[voice]])
        print(f"{voice}: {chosen[voice]} {its:.3f}, all {N_KEPT} {score(said):.3f}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.bark_nano.prompts", description="The clips of the presets."
    )
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
