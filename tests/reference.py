"""Drives Suno's own torch functions with decisions that a test controls. Needs torch; holds no tests.

Suno draws with ``torch.multinomial``; here it is replaced by one that either takes the most likely candidate or adds
given Gumbel noise. Where the best two candidates are closer than float32 can tell apart, the reference is told to take
our candidate (teacher forcing), and that is counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checkpoints import reference, write_vocabulary

MARGIN = 1e-4
"""DESIGN law 1: below this difference of the best two logits, either choice is right."""

VOCABULARY = Path(__file__).resolve().parents[2] / "shared" / "data" / "mbert" / "vocab.txt"


class Draws:
    """A stand-in for ``torch.multinomial``.

    Args:
      temperature: what the probabilities were divided by; margins are measured on logits.
      noise: None for argmax; else a function of the number of the call, giving Gumbel noise over the candidates.
      follow: our choices, by the number of the call, for decisions within `MARGIN`.
    """

    def __init__(self, temperature: float, noise: Any = None, follow: Sequence[int] | None = None):
        self.temperature, self.noise, self.follow = temperature, noise, follow
        self.calls, self.close = 0, 0

    def __call__(self, probs: torch.Tensor, num_samples: int = 1) -> torch.Tensor:
        scores = torch.log(probs.double())
        if self.noise is not None:
            scores = scores + torch.from_numpy(np.asarray(self.noise(self.calls), np.float64)[: len(probs)])
        best = torch.topk(scores, 2)
        choice = int(best.indices[0])
        if float(best.values[0] - best.values[1]) * self.temperature <= MARGIN:
            self.close += 1
            if self.follow is not None and self.calls < len(self.follow):
                ours = self.follow[self.calls]
                if float(best.values[0] - scores[ours]) * self.temperature <= MARGIN:
                    choice = ours
        self.calls += 1
        return torch.tensor([choice])


class Suno:
    """Suno's functions on the models of a folder written by `checkpoints.write_suno`."""

    def __init__(self, models: dict[str, Any]):
        self.generation = reference("bark.generation")
        self.models = models

    @contextlib.contextmanager
    def _patched(self, draws: Draws | None) -> Iterator[None]:
        before, multinomial = self.generation.models, torch.multinomial
        self.generation.models = self.models
        if draws is not None:
            torch.multinomial = draws
        try:
            yield
        finally:
            self.generation.models, torch.multinomial = before, multinomial

    def semantic(self, text: str, history: Any, draws: Draws, **options: Any) -> np.ndarray:
        with self._patched(draws):
            out = self.generation.generate_text_semantic(
                text, history_prompt=history, silent=True, use_kv_caching=True, **options
            )
        return np.atleast_1d(out)

    def coarse(self, semantic: np.ndarray, history: Any, draws: Draws, **options: Any) -> np.ndarray:
        with self._patched(draws):
            return self.generation.generate_coarse(
                semantic, history_prompt=history, silent=True, use_kv_caching=True, **options
            )

    def fine(self, coarse: np.ndarray, history: Any, draws: Draws | None, **options: Any) -> np.ndarray:
        with self._patched(draws):
            return self.generation.generate_fine(coarse, history_prompt=history, silent=True, **options)

    def decode(self, fine: np.ndarray) -> np.ndarray:
        with self._patched(None), torch.no_grad():
            return np.atleast_1d(self.generation.codec_decode(fine.astype(np.int64)))


def presets() -> Path:
    """The folder of Suno's 271 voice presets."""
    return Path(reference("bark").__file__).parent / "assets" / "prompts"


def vocabulary(folder: Path) -> Path:
    """mBERT's ``vocab.txt`` where it lies beside the project, otherwise a made-up one of the same size in `folder`."""
    return VOCABULARY if VOCABULARY.exists() else write_vocabulary(folder / "vocab.txt")


def bert_tokenizer(path: Path) -> Any:
    """Suno's tokenizer; its ``vocab_file`` argument is ignored by transformers 5, ``vocab`` is not."""
    import transformers

    tokenizer = transformers.BertTokenizer(vocab=str(path), do_lower_case=False)
    if len(tokenizer) != 119_547:
        raise AssertionError(f"the reference tokenizer has {len(tokenizer)} entries, not 119,547")
    return tokenizer
