"""Does coarse say its units? ``python -m recipes.bark_nano.evaluate coarse``

    validation rows ─▶ units, or those of the text stage ─▶ coarse, after a clip of the voice ─▶ its codebooks decoded
    ─▶ whisper: how likely each word of the text is; GE2E: how like the voice it is

Neither fine nor a search for words takes part. Of likelihoods a hundred sentences tell apart what takes a thousand to
count in wrong words: a word that is nearly lost counts, and no clip goes round in circles.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

import bark_jax
from bark_jax import judges, library
from bark_jax.audio import resample
from recipes.bark_nano import corpus, gpts, listen, rows
from recipes.bark_nano.speech import RATE

LEAST, UNHEARD = -4.0, -1.0
"""Logarithms of a word's likelihood: none is lower (what is not heard at all, is not heard at all), and below which a
word counts as not heard."""
CLIP_S, PROMPT_S = (1.2, 6.0), (2.5, 6.0)
"""Lengths of the clips that are said, and of their prompts."""
WINDOW_S, FRAMES = 30, 3000
"""What whisper's encoder takes, and the frames of its spectrogram in it."""


class Ear(listen.Whisper):
    """whisper-base asked how likely a text is, not what it hears."""

    @functools.cached_property
    def _start(self) -> list[int]:
        from faster_whisper.tokenizer import Tokenizer

        model = self._model
        return Tokenizer(model.hf_tokenizer, model.model.is_multilingual, "transcribe", self._language).sot_sequence

    def likely(self, said: Iterable[tuple[str, np.ndarray]]) -> Iterator[np.ndarray]:
        """Texts and (samples,) at 16 kHz that should say them → for each text (W,), natural logarithms.

        How likely each word is after those before it, not below `LEAST`. A word is what stands between blanks; its
        signs do not count. Several clips are heard at once, with a silence after each (`listen.PACK_S`): no two that
        follow each other should have one text, or whisper says it again.

        Raises:
          ValueError: a clip longer than half a minute.
        """

        def fitting(pair: tuple[str, np.ndarray]) -> np.ndarray:
            seconds = len(pair[1]) / listen.RATE
            if seconds + listen.GAP_S > WINDOW_S:
                raise ValueError(f"a clip of {seconds:.1f} s is too long: whisper takes {WINDOW_S} s")
            return pair[1]

        for pack in listen.packs(said, fitting):
            yield from self._likely([pair for pair, _ in pack])

    def _likely(self, said: Sequence[tuple[str, np.ndarray]]) -> list[np.ndarray]:
        """The same of what fits at once."""
        from faster_whisper.audio import pad_or_trim

        tokenizer = self._model.hf_tokenizer
        ids: list[int] = []
        words: list[tuple[int, int] | None] = []  # of each id: number of the text and of the word; None: a sign
        for i, (text, _) in enumerate(said):
            for j, word in enumerate(text.split()):
                for id in tokenizer.encode(f" {word}", add_special_tokens=False).ids:
                    ids.append(id)
                    words.append((i, j) if any(c.isalnum() for c in tokenizer.decode([id])) else None)
        features = self._model.feature_extractor(listen.spaced(said).astype(np.float32))[:, :FRAMES]
        encoded = self._model.encode(pad_or_trim(features))
        [found] = self._model.model.align(encoded, self._start, [ids], features.shape[-1])
        out = [np.zeros(len(text.split())) for text, _ in said]
        for word, log in zip(words, np.log(np.maximum(found.text_token_probs, 1e-9)), strict=True):
            if word is not None:
                out[word[0]][word[1]] += log
        return [np.maximum(logs, LEAST) for logs in out]


def clips(tokens: Path, rate_hz: float) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Validation rows of all voices but the bulk's, the shortest first, each with a training row of its voice.

    Raises:
      ValueError: there are none.
    """
    wanted: list[dict[str, Any]] = []
    prompts: dict[str, dict[str, Any]] = {}
    fits = lambda row, span: span[0] <= len(row["semantic"]) / rate_hz <= span[1]  # noqa: E731
    columns = ["id", "voice", "split", "text", "semantic", "fine"]
    for file in sorted(tokens.glob("said-*.parquet")):
        for row in pyarrow.parquet.read_table(file, columns=columns).to_pylist():
            if row["voice"] == corpus.BULK:
                continue
            if row["split"] == "validation" and fits(row, CLIP_S):
                wanted.append(row)
            elif row["split"] == "train" and fits(row, PROMPT_S):
                prompts.setdefault(row["voice"], row)
    found = [(row, prompts[row["voice"]]) for row in wanted if row["voice"] in prompts]
    if not found:
        raise ValueError(f"{tokens} has no said-*.parquet with validation clips of voices that have others to train on")
    return sorted(found, key=lambda pair: (len(pair[0]["semantic"]), pair[0]["id"]))


def evaluate_coarse(tokens: Path, model: str, assets: Path, *, draws: int = 3) -> dict[str, Any]:
    """Figures, and a table on the way: of the codec's copies, of coarse given the clips' units, and the text stage's.

    "heard" are nats a word, "unheard" per cent of the words, "like" GE2E's cosine to the prompt.

    Args:
      tokens: the rows of the corpus, of this model's codec and units.
      draws: of each clip.

    Raises:
      ValueError: the rows are of another codec or other units, or lack clips.
    """
    folder, _ = library.locate(model)
    rows.check(tokens, folder / "codec.safetensors", folder / "units.safetensors")
    bark = bark_jax.load(model)
    some = clips(tokens, bark.config.semantic.rate_hz)
    texts = [row["text"] for row, _ in some]
    prompts = [gpts.as_voice(prompt, bark.config) for _, prompt in some]
    ear, speakers = Ear(assets), judges.Speakers()
    sound = lambda codes: resample(bark.decode(codes), RATE, listen.RATE)  # noqa: E731
    voices = [speakers(sound(prompt.fine), listen.RATE) for prompt in prompts]
    figures: dict[str, Any] = {"clips": len(some), "words": sum(len(text.split()) for text in texts)}

    def judge(name: str, said: Sequence[Sequence[np.ndarray]]) -> None:
        logs = np.concatenate([words for clip in said for words in ear.likely(zip(texts, clip, strict=True))])
        like = [
            speakers(audio, listen.RATE) @ voice for clip in said for audio, voice in zip(clip, voices, strict=True)
        ]
        heard = {"heard": logs.mean(), "unheard": 100 * (logs < UNHEARD).mean(), "like": np.mean(like)}
        print(f"{name:>6}: " + ", ".join(f"{key} {value:.3f}" for key, value in heard.items()), flush=True)
        figures.update({f"{key}_{name}": round(float(value), 4) for key, value in heard.items()})

    n = bark.config.coarse.n_codebooks
    judge("copies", [[sound(np.array(row["fine"], np.int32)[:n]) for row, _ in some]])
    seeds = lambda k: [zlib.crc32(f"{k} {row['id']}".encode()) for row, _ in some]  # noqa: E731
    own = bark.text_to_semantic(texts, voice=prompts, seed=seeds(0))
    true = [np.array(row["semantic"], np.int32) for row, _ in some]
    for name, units in (("true", true), ("text", own)):
        judge(
            name,
            [
                [sound(codes) for codes in bark.semantic_to_coarse(units, voice=prompts, seed=seeds(k))]
                for k in range(draws)
            ],
        )
    return figures
