"""Law 3: what the trainer feeds is what generation feeds, integer for integer.

The generators run as they are, with a network that answers from a script and writes down what it can see: at every
step the whole visible context, token by token with its position. So caches that grow, rings and windows are in it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import models
from bark_jax import coarse, config, fine, sampling, semantic, tokens
from bark_jax.gpt import KVCache
from bark_jax.train import examples
from bark_jax.train.examples import IGNORE, Row

SIZE = (1, 1, 4)
CONFIG = models.config(SIZE)
GREEDY = sampling.Sampling.greedy()


@jax.tree_util.register_pytree_node_class
class Script:
    """Stands where `Weights` stand: its module asks `answer` on the host what the network says."""

    def __init__(self, module: Any, leaves: Any = None):
        self.module = module
        self.leaves = (jnp.zeros(()),) if leaves is None else leaves

    def tree_flatten(self) -> Any:
        return self.leaves, self.module

    @classmethod
    def tree_unflatten(cls, module: Any, leaves: Any) -> Script:
        return cls(module, leaves)


class Causal:
    """A network whose cache holds what was fed: (sum of ids, sum of their squares, position, 1) per slot.

    Two ids are added at a position of the text prompt; sum and squares tell which two.
    """

    def __init__(self, stage_config: Any, answer: Callable[[int, np.ndarray], np.ndarray]):
        self.config, self.answer = stage_config.network, answer
        self.seen: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def embed(self, ids: jax.Array) -> jax.Array:
        ids = ids.astype(jnp.float32)
        return jnp.stack([ids, ids**2, 0 * ids, 0 * ids], axis=-1)

    def prefill(self, x: jax.Array) -> KVCache:
        keys = x.at[..., 2].set(jnp.arange(x.shape[1], dtype=jnp.float32)).at[..., 3].set(1)
        return KVCache((keys,), (keys,))

    def decode_step(self, cache: KVCache, token: Any, position: Any, slot: Any, visible: Any) -> Any:
        new = self.embed(token).at[:, 2].set(position).at[:, 3].set(1)
        keys = cache.keys[0].at[:, slot].set(new)
        shape = jax.ShapeDtypeStruct((len(token),), jnp.int32)
        said = io_callback(self._note, shape, keys, visible, ordered=True)
        return KVCache((keys,), cache.values), said

    def logits(self, said: jax.Array, start: int = 0, end: int | None = None) -> jax.Array:
        return jax.nn.one_hot(said, self.config.output_vocab_size)[:, start:end]

    def _note(self, keys: np.ndarray, visible: np.ndarray) -> np.ndarray:
        step = []
        for row, seen in zip(np.asarray(keys), np.asarray(visible), strict=True):
            context = row[seen]
            assert (context[:, 3] == 1).all(), "a slot is visible that was never written"
            step.append((context[np.argsort(context[:, 2])], seen))
        self.seen.append([context for context, _ in step])  # type: ignore[misc]
        return np.array([self.answer(b, context) for b, (context, _) in enumerate(step)], np.int32)


def row(n: int, seed: int, made: config.BarkConfig = CONFIG) -> Row:
    rng = np.random.default_rng(seed)
    stage = made.semantic
    ids = np.full(stage.text_length, stage.text_pad_token, np.int32)
    length = int(rng.integers(1, stage.text_length + 1))
    ids[:length] = stage.text_offset + rng.integers(0, stage.text_vocab_size, length)
    frames = tokens.n_frames(made.coarse, n)
    said = rng.integers(0, stage.vocab_size, n).astype(np.int32)
    codes = rng.integers(0, made.codec.codebook_size, (made.codec.n_codebooks, frames)).astype(np.int32)
    return Row(f"row {seed}", "text", ids, "v", said, codes)


def keys(n: int, stage: str) -> jax.Array:
    return sampling.stage_keys([0] * n, stage)


def same_context(context: np.ndarray, inputs: np.ndarray) -> None:
    """`inputs` (T,) or (2, T) is what `context` (T, 4) holds, at positions 0 .. T-1."""
    pair = inputs if inputs.ndim == 2 else np.stack([inputs, np.full_like(inputs, IGNORE)])
    pair = np.where(pair == IGNORE, 0, pair).astype(np.float64)
    np.testing.assert_array_equal(context[:, 2], np.arange(inputs.shape[-1]))
    np.testing.assert_array_equal(context[:, 0], pair.sum(axis=0))
    np.testing.assert_array_equal(context[:, 1], (pair**2).sum(axis=0))


HISTORIES = [None, 1, 31, 32, 33, 60]


@pytest.mark.parametrize("n", [1, 7, 224])
def test_text_is_fed_as_in_generation(n: int) -> None:
    rows = [row(max(1, n - i), 100 * n + i) for i in range(len(HISTORIES))]
    histories = [None if h is None else row(h, h) for h in HISTORIES]
    made = [examples.text_example(CONFIG, r, h) for r, h in zip(rows, histories, strict=True)]
    stage = CONFIG.semantic

    def answer(b: int, context: np.ndarray) -> int:
        at = len(context) - 1
        return made[b].targets[at] if at < len(made[b].targets) else 0

    network = Causal(stage, answer)
    prompts = [
        semantic.prompt(stage, r.text_ids, None if h is None else h.semantic)
        for r, h in zip(rows, histories, strict=True)
    ]
    said, ended = semantic.generate(
        Script(network), stage, np.stack(prompts), [GREEDY] * len(rows), keys(len(rows), "semantic")
    )
    for b, one in enumerate(made):
        np.testing.assert_array_equal(said[b], rows[b].semantic)
        assert ended[b] == (len(rows[b].semantic) < stage.max_tokens)
        asked = np.flatnonzero(one.targets != IGNORE)
        assert len(asked) == len(said[b]) + ended[b], "every token once, and the end of speech once"
        np.testing.assert_array_equal(asked, stage.text_length + np.arange(len(asked)))
        for at in asked:
            same_context(network.seen[at - stage.text_length][b], one.inputs[:, : at + 1])


@pytest.mark.parametrize(("n", "most"), [(1, 120), (5, 12), (61, 30), (150, 120)])
def test_coarse_is_fed_as_in_generation(n: int, most: int) -> None:
    stage = CONFIG.coarse
    rows = [row(n + i, 10 * n + i) for i in range(3)]
    histories = [None, row(60, 1), row(131, 2)]
    prompts = [
        coarse.prompt(stage, r.semantic, None if h is None else (h.semantic, h.fine[:2]), most)
        for r, h in zip(rows, histories, strict=True)
    ]
    flat = [tokens.flatten_codes(stage, r.fine[:2]) for r in rows]
    calls = [0]

    def answer(b: int, context: np.ndarray) -> int:
        at = calls[0] // len(rows)
        calls[0] += 1
        return flat[b][at] if at < len(flat[b]) else stage.code_offset

    network = Causal(stage, answer)
    codes = coarse.generate(Script(network), stage, prompts, [GREEDY] * 3, keys(3, "coarse"))
    n_windows = 0
    for b, r in enumerate(rows):
        np.testing.assert_array_equal(codes[b], r.fine[:2])
        for step in range(0, len(flat[b]), stage.window):
            made = examples.coarse_example(CONFIG, r, histories[b], step, most, whole=False)
            everything = examples.coarse_example(CONFIG, r, histories[b], step, most)
            np.testing.assert_array_equal(made.inputs, everything.inputs)
            asked = np.flatnonzero(made.targets != IGNORE)
            np.testing.assert_array_equal(made.targets[asked], flat[b][step : step + stage.window])
            np.testing.assert_array_equal(everything.targets[asked], made.targets[asked])
            # Of all coarse tokens of the prompt, each but the last is the next position's input.
            every = np.flatnonzero(everything.targets != IGNORE)
            np.testing.assert_array_equal(every, np.arange(stage.semantic_length, len(made.targets)))
            np.testing.assert_array_equal(everything.targets[every[:-1]], made.inputs[every[1:]])
            for i, at in enumerate(asked):
                same_context(network.seen[step + i][b], made.inputs[: at + 1])
            n_windows += 1
    assert n_windows >= 3


class Fine:
    """A fine network whose embeddings are the codes themselves, one channel per codebook."""

    def __init__(self, stage_config: Any, answer: Callable[[int, int, int], np.ndarray]):
        self.stage, self.answer = stage_config, answer
        self.seen: list[tuple[int, np.ndarray]] = []

    def embed(self, codebook: Any, codes: jax.Array) -> jax.Array:
        return (codes[..., None] + 1) * (jnp.arange(self.stage.n_codebooks) == codebook)

    def logits(self, codebook: Any, x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(x.shape[:2], jnp.int32)
        said = io_callback(self._note, shape, codebook, x, ordered=True)
        return jax.nn.one_hot(said, self.stage.codebook_size)

    def _note(self, codebook: Any, x: np.ndarray) -> np.ndarray:
        window = len(self.seen) // (self.stage.n_codebooks - 2)
        self.seen.append((int(codebook), np.asarray(x) - 1))
        return np.stack([self.answer(b, int(codebook), window) for b in range(len(x))]).astype(np.int32)


@pytest.mark.parametrize("n", [1, 84, 128, 224])
def test_fine_is_fed_as_in_generation(n: int) -> None:
    stage = CONFIG.fine
    rows = [row(n, n + i) for i in range(4)]
    histories = [None, row(2, 1), row(30, 2), row(90, 3)]
    states = [
        fine.prompt(stage, r.fine[:2], None if h is None else h.fine) for r, h in zip(rows, histories, strict=True)
    ]
    rng = np.random.default_rng(0)
    beyond = rng.integers(0, stage.codebook_size, (stage.window, stage.n_codebooks))

    def answer(b: int, codebook: int, window: int) -> np.ndarray:
        state = states[b]
        if window >= len(state.windows):
            return np.zeros(stage.window)
        frames = state.windows[window].start + np.arange(stage.window) - state.n_history
        inside = (frames >= 0) & (frames < state.n_frames)
        truth = rows[b].fine[codebook][np.clip(frames, 0, state.n_frames - 1)]
        return np.where(inside, truth, beyond[:, codebook])

    network = Fine(stage, answer)
    filled = fine.generate(Script(network), stage, states, [GREEDY] * 4, keys(4, "fine"))
    for b, r in enumerate(rows):
        np.testing.assert_array_equal(filled[b], r.fine)
        asked = np.zeros((stage.n_codebooks, r.fine.shape[1]), int)
        for w, window in enumerate(states[b].windows):
            for codebook in range(2, stage.n_codebooks):
                made = examples.fine_example(CONFIG, r, histories[b], w, codebook, beyond)
                found, x = network.seen[w * (stage.n_codebooks - 2) + codebook - 2]
                assert found == made.codebook == codebook
                np.testing.assert_array_equal(made.inputs[:, : codebook + 1], x[b][:, : codebook + 1])
                at = np.flatnonzero(made.targets != IGNORE)
                frames = window.start + at - states[b].n_history
                drawn = np.arange(window.fill - states[b].n_history, window.start - states[b].n_history + stage.window)
                np.testing.assert_array_equal(frames, drawn[drawn < r.fine.shape[1]])
                fresh = frames >= (states[b].windows[w - 1].start - states[b].n_history + stage.window if w else 0)
                np.testing.assert_array_equal(made.inputs[at, codebook] == stage.pad_token, fresh)
                np.testing.assert_array_equal(made.targets[at], r.fine[codebook][frames])
                asked[codebook][frames[fresh]] += 1
        assert (asked[2:] == 1).all(), "every code is asked exactly once without the answer among the inputs"


def test_numbers_of_bark_itself() -> None:
    """The layout written out by hand from Suno's constants, without any of our functions."""
    bark = config.suno((1, 1, 4))
    r = dataclasses.replace(row(40, 0, bark), text_ids=np.full(256, 129_595, np.int32))
    r.text_ids[:2] = 10_048 + 101, 10_048 + 102  # type: ignore[index]
    h = row(300, 1, bark)
    one = examples.text_example(bark, r, h)
    assert one.inputs.shape == (2, 256 + 41)
    assert list(one.inputs[0, :3]) == [10_149, 10_150, 129_595] and one.inputs[0, 256] == 129_599
    np.testing.assert_array_equal(one.inputs[1, :256], h.semantic[-256:])
    np.testing.assert_array_equal(one.inputs[0, 257:], r.semantic)
    np.testing.assert_array_equal(one.targets[256:], [*r.semantic, 10_000])
    assert (examples.text_example(bark, r, None).inputs[1, :256] == 10_000).all()

    # 300 semantic ids of history: 209 are shown, with round(209 · 3.006) = 628 coarse tokens, less one frame.
    two = examples.coarse_example(bark, r, h, 60, 630)
    start = 209 + round(60 / (75 / 49.9 * 2)) - 209
    np.testing.assert_array_equal(two.inputs[:256], [*np.append(h.semantic[-209:], r.semantic)[start:], *[12_048] * 27])
    interleaved = lambda codes: (codes[:2] + [[10_000], [11_024]]).T.reshape(-1)  # noqa: E731
    history = interleaved(h.fine)[-628:-2]
    said = interleaved(r.fine)
    before = np.append(history, said[:60])[-630:]
    np.testing.assert_array_equal(two.inputs[256:], [12_050, *before, *said[60:119]])
    np.testing.assert_array_equal(two.targets[-60:], said[60:120])
