"""`bark_jax.train.alignment`, and the loss that shows a text stage where it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("pyarrow")

import models
from bark_jax import semantic, text, weights
from bark_jax.gpt import CausalGPT
from bark_jax.train import data, examples, loss
from bark_jax.train.alignment import UNKNOWN, Sounds, align
from bark_jax.train.examples import IGNORE, Batch, Row

CONFIG = models.config((3, 2, 16))


def spoken(n: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Clips by a known process: texts of ids, what is said, and how many ids have begun.

    Every id lasts as long as it likes, 2 to 9 semantic ids, and is said with three of its own; so is silence.
    """
    rng = np.random.default_rng(seed)
    longest = 2 + np.arange(20) % 8
    texts, said, begun = [], [], []
    for _ in range(n):
        ids = rng.integers(0, 20, rng.integers(4, 20))
        lasts = [rng.integers(0, 6), *rng.integers(1, longest[ids] + 1), rng.integers(0, 6)]
        begun.append(np.repeat(np.arange(len(ids) + 2), lasts))
        sounds = np.concatenate([[20], ids, [20]])[begun[-1]]
        texts.append(7 + 11 * ids)  # any integers will do
        said.append(3 * sounds + rng.integers(0, 3, len(sounds)))
    return texts, said, begun


def test_places_are_found_out() -> None:
    texts, said, begun = spoken(400, seed=0)
    found = align(texts, said)
    for ids, one in zip(texts, found, strict=True):
        assert one.dtype == np.int32 and (np.diff(one) >= 0).all() and one[0] >= 0 and one[-1] <= len(ids) + 1
    known = [i for i, ids in enumerate(texts) if len(said[i]) >= len(ids) + 2]
    right = np.concatenate([found[i] == begun[i] for i in known])
    assert len(known) > 350 and right.mean() > 0.95  # an id twice in a row has no border that can be heard
    shuffled = align([texts[i] for i in np.random.default_rng(1).permutation(400)], said)
    assert np.concatenate([shuffled[i] == begun[i] for i in known if len(shuffled[i]) == len(begun[i])]).mean() < 0.5
    np.testing.assert_equal(align(texts, said), found)


def test_ids_that_are_not_heard_are_passed_over() -> None:
    texts, said, begun = spoken(400, seed=2)
    signs = [np.insert(ids, len(ids) // 2, 5) for ids in texts]  # a comma, say
    found = align(signs, said)
    for i, one in enumerate(begun):
        begun[i] = one + (one > len(texts[i]) // 2)
    known = [i for i, ids in enumerate(signs) if len(said[i]) >= len(ids) + 2]
    assert np.concatenate([found[i] == begun[i] for i in known]).mean() > 0.9


def test_clips_too_short_for_their_text_are_not_aligned() -> None:
    long, short = np.arange(5), np.arange(8)
    found = align([long, short], [np.arange(9), np.arange(9)])
    assert (found[0] >= 0).all() and (found[1] == UNKNOWN).all()
    assert [len(one) for one in align([short], [np.arange(9)])] == [9] and align([], []) == []


def test_sounds_are_kept_and_others_are_refused() -> None:
    texts, said, _ = spoken(400, seed=3)
    sounds = Sounds.learn(texts[:300], said[:300])
    found = sounds.places(texts[300:], said[300:])
    fits = [sounds.likelihoods(*one) for one in zip(texts[300:], said[300:], found, strict=True) if one[2][0] >= 0]
    assert np.concatenate(fits).mean() == pytest.approx(np.log(1 / 3), abs=0.1)  # each id has three sounds
    with pytest.raises(ValueError, match="text id 1000 did not occur"):
        sounds.places([np.array([7, 1000])], said[:1])
    with pytest.raises(ValueError, match="semantic id 500 did not occur"):
        sounds.places(texts[:1], [np.array([500])])


def test_a_corpus_knows_the_places_of_its_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"{i}", "split": "train", "text": "hello one two", "semantic": rng.integers(0, 90, 12 + i)}
        for i in range(3)
    ]
    corpus = data.read(
        data.write(tmp_path / "rows.parquet", rows),
        CONFIG,
        "text",
        tokenizer=text.load_tokenizer(models.tokenizer_json()),
    )
    aligned = corpus.aligned()
    texts = [np.array([k for k in corpus[i].text_ids if k != CONFIG.semantic.text_pad_token]) for i in range(3)]
    expected = align(texts, [corpus[i].semantic for i in range(3)])
    for i in range(3):
        assert corpus[i].places is None
        np.testing.assert_array_equal(aligned[i].places, expected[i])
        np.testing.assert_array_equal(aligned[i].semantic, corpus[i].semantic)
    assert aligned.digest == corpus.digest


def test_places_stand_where_their_semantic_ids_are_fed() -> None:
    stage = CONFIG.semantic
    ids = np.full(stage.text_length, stage.text_pad_token, np.int32)
    ids[:3] = stage.text_offset + np.arange(3)
    places = np.array([0, 0, 1, 1, 2, 3, 3, 4], np.int32)
    row = Row("a", "abc", ids, None, np.arange(8, dtype=np.int32), np.zeros((0, 0), np.int32), places)
    made = examples.text_example(CONFIG, row, None)
    assert (made.places[: stage.text_length] == IGNORE).all()
    fed = slice(stage.text_length + 1, None)
    np.testing.assert_array_equal(made.places[stage.text_length :], [0, *places])
    np.testing.assert_array_equal(made.inputs[0, fed], row.semantic)
    assert (examples.bare("text", CONFIG, made).places == IGNORE).all()
    unknown = examples.text_example(CONFIG, dataclasses.replace(row, places=None), None)
    batch = examples.collate("text", CONFIG, [made, unknown], [0, 1], examples.length(made) + 5)
    assert batch.places.shape == batch.targets.shape and (batch.places[0, -5:] == IGNORE).all()


@pytest.fixture(scope="module")
def network() -> CausalGPT:
    made = weights.build(CONFIG, "semantic")
    tensors = {
        name: 8 * jax.random.normal(jax.random.key(i), x.shape) * x.std()
        for i, (name, x) in enumerate(weights.names(made).items())
    }
    return weights.fill(weights.abstract(CONFIG, "semantic"), tensors)


def test_looks_are_the_weights_of_attention(network: CausalGPT) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 11, CONFIG.semantic.network.n_embd))
    block = network.blocks[1]
    n_head = CONFIG.semantic.network.n_head
    shown = jnp.exp(network.looks(1, x, n_head, 4))
    assert shown.shape == (2, n_head, 7, 11)
    np.testing.assert_allclose(shown.sum(-1), 1, rtol=1e-5)
    assert float(jnp.abs(jnp.triu(shown[0, 0], 5)).max()) == 0
    _, _, values = block.attn.whole(block.ln_1(x), causal=True)
    y = jnp.einsum("bhqt,bhtk->bqhk", shown, values.reshape(2, n_head, 11, -1)).reshape(2, 7, -1)
    np.testing.assert_allclose(
        block.attn.c_proj(y), block.attn.whole(block.ln_1(x), causal=True, start=4)[0], rtol=1e-4, atol=1e-5
    )


def test_lost_is_what_the_pointing_heads_give_to_other_ids(network: CausalGPT) -> None:
    stage, n = CONFIG.semantic, CONFIG.semantic.text_length
    rng = np.random.default_rng(0)
    length = n + 6
    inputs = np.full((2, 2, length), IGNORE, np.int32)
    inputs[:, 0] = rng.integers(0, stage.network.input_vocab_size, (2, length))
    inputs[:, 1, :n] = stage.pad_token
    targets = np.full((2, length), IGNORE, np.int32)
    targets[:, n:] = rng.integers(0, stage.vocab_size, (2, 6))
    targets[1, -2:] = IGNORE
    places = np.full((2, length), IGNORE, np.int32)
    places[0, n:], places[1, n:] = [0, 0, 1, 2, 2, 3], [0, 1, n, n + 1, 5, 5]
    batch = Batch(*map(jnp.asarray, (inputs, targets, np.zeros(2, np.int32), np.arange(2), places)))
    seen: list[jax.Array] = []
    loss.nll("text", CONFIG, network, batch, inputs=seen)
    assert len(seen) == stage.network.n_layer and all(x.shape[:2] == (2, length) for x in seen)
    found = loss.lost(stage, network, batch, seen)
    blocks = list(loss.pointing_blocks(stage.network.n_layer))
    assert blocks == [1]
    for row in range(2):
        total = 0.0
        for i in blocks:
            weights_ = np.exp(np.asarray(network.looks(i, seen[i], 2, n), np.float64))[row]
            for t in range(6):
                if targets[row, n + t] == IGNORE:
                    continue
                begun = places[row, n + t]
                if begun > 0:
                    total -= np.log(weights_[0, t, min(begun - 1, n - 1)])
                total -= np.log(weights_[1, t, min(begun, n - 1)])
        np.testing.assert_allclose(found[row], total / (2 * len(blocks)), rtol=1e-4)
    nothing = loss.lost(stage, network, batch._replace(places=jnp.full_like(batch.places, IGNORE)), seen)
    np.testing.assert_array_equal(nothing, 0)


def test_the_middle_blocks_point() -> None:
    assert list(loss.pointing_blocks(6)) == [2, 3, 4] and list(loss.pointing_blocks(12)) == list(range(4, 11))
    assert [list(loss.pointing_blocks(n)) for n in (1, 2, 3)] == [[0], [0], [1]]


def test_prompts_are_generations() -> None:
    """The pad that follows a text is there to be looked at: `lost` counts on it."""
    stage = CONFIG.semantic
    ids = np.full(stage.text_length, stage.text_pad_token, np.int32)
    assert semantic.prompt(stage, ids, None)[0, -1] == stage.text_pad_token
