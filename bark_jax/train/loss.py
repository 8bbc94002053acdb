"""A batch → the negative log-likelihood of its targets, row by row.

The likelihood is that of the distribution which generation draws from, at temperature 1: over the semantic ids and the
end of speech (10,001 for Bark), over the codes of the codebook that a position is due (1,024). Outputs that are never
candidates (unused rows of a head, semantic ids in the coarse one) take no part, and cost nothing.

Pure JAX; knows networks and batches, and nothing of optimizers, files or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bark_jax.config import BarkConfig, CoarseConfig, FineConfig, SemanticConfig
from bark_jax.gpt import CausalGPT, FineGPT
from bark_jax.linear import Dropout, matmul
from bark_jax.settings import Sampling
from bark_jax.train.examples import IGNORE, Batch, told

Predicted = tuple[jax.Array, jax.Array, jax.Array]
"""Of the positions that have targets: logits (B, T, V), which of them is right (B, T), and whether it counts (B, T)."""


def nll(
    stage: str,
    config: BarkConfig,
    network: Any,
    batch: Batch,
    *,
    dropout: Dropout | None = None,
    remat: str = "none",
    guidance: float = 1.0,
    sharpness: float = 1.0,
    inputs: list[jax.Array] | None = None,
    vectors: np.ndarray | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of a batch.

    Args:
      stage: "text", "coarse" or "fine".
      network: the stage's module, float32 or bfloat16.
      batch: arrays as in `Batch`.
      remat: what to keep for the gradient, see `bark_jax.gpt.REMAT`.
      guidance: of the text and coarse stages, see `unguided`.
      sharpness: what the network gives is so many times the logits whose likelihood this is.
      inputs: of the text and coarse stages, a list that what goes into each block is appended to, for `lost`.
      vectors: of the fine stage, what the codes stand for, see `smoothed`; None: only the true code is right.

    Returns:
      Per row the sum over its targets (B,) float32, in nats, and the number of targets (B,) int32.
    """
    how: dict[str, Any] = {"dropout": dropout, "remat": remat}
    logits, codes, counted = predicted(stage, config, network, batch, inputs=inputs, **how)
    if guidance != 1.0:
        place, pad = told(stage, config)
        place = (slice(None), *place)
        without, _, _ = predicted(stage, config, network, batch._replace(inputs=batch.inputs.at[place].set(pad)))
        plain = unguided(logits, jax.lax.stop_gradient(without), guidance)
        shown = jnp.any(batch.inputs[place] != pad, axis=-1)
        logits = jnp.where(shown[:, None, None], plain, logits)
    logits = logits / sharpness
    if vectors is None:
        losses = _cross_entropy(logits, codes)
    else:
        losses = smoothed(logits, codes, jnp.asarray(vectors)[batch.codebook])
    return jnp.sum(jnp.where(counted, losses, 0.0), axis=1), jnp.sum(counted, axis=1, dtype=jnp.int32)


def predicted(
    stage: str,
    config: BarkConfig,
    network: Any,
    batch: Batch,
    *,
    dropout: Dropout | None = None,
    remat: str = "none",
    inputs: list[jax.Array] | None = None,
) -> Predicted:
    """What a network predicts where a batch has targets; arguments as of `nll`."""
    if stage == "fine":
        return _fine(config.fine, network, batch, dropout, remat)
    how = {"dropout": dropout, "remat": remat, "inputs": inputs}
    if stage == "coarse":
        return _coarse(config.coarse, network, batch, how)
    return _text(config.semantic, network, batch, how)


POINTING = 2
"""Heads of a block that `lost` teaches: the first looks at the id that is being said, the second at the next one."""


def pointing_blocks(n_layer: int) -> range:
    """The blocks whose heads point: the first third finds out what has been said, the last block what follows.

    For bark-nano's 6 blocks 2, 3 and 4; chosen, not tuned.
    """
    return range(n_layer // 3, max(n_layer - 1, n_layer // 3 + 1))


def lost(config: SemanticConfig, network: CausalGPT, batch: Batch, inputs: Sequence[jax.Array]) -> jax.Array:
    """How far from their place in the text the pointing heads look, row by row.

    Supervised attention, as alignments were taught to translation models (Liu et al. 2016, arXiv 1609.04186): the mean
    over heads of the negative logarithm of the weight that lies on the right id.

    Args:
      batch: with places, (B, T).
      inputs: what went into each block, see `CausalGPT.hidden`.

    Returns:
      (B,) float32, the sum over the positions that have targets, in nats.
    """
    n = config.text_length
    begun = batch.places[:, n:]
    # Nothing before the text is looked at, and after it the padding that follows: there is none after a full one.
    asked = [jnp.where(begun > 0, jnp.minimum(begun - 1, n - 1), IGNORE), jnp.minimum(begun, n - 1)]
    ids = jnp.stack(asked, axis=1)[..., None]  # (B, heads, T - n, 1)
    blocks = pointing_blocks(len(inputs))
    total: Any = 0.0
    for i in blocks:
        found = jnp.take_along_axis(network.looks(i, inputs[i], POINTING, n), jnp.maximum(ids, 0), axis=-1)
        total = total - jnp.where(ids == IGNORE, 0.0, found)[..., 0]
    counted = (batch.targets[:, n:] != IGNORE)[:, None]
    return jnp.sum(jnp.where(counted, total, 0.0), axis=(1, 2)) / (POINTING * len(blocks))


def _text(config: SemanticConfig, network: CausalGPT, batch: Batch, how: dict[str, Any]) -> Predicted:
    n = config.text_length
    x = network.embed(batch.inputs[:, 0])
    x = x.at[:, :n].add(network.embed(batch.inputs[:, 1, :n]))
    hidden = network.hidden(x, start=n, **how)
    targets = batch.targets[:, n:]
    head = network.lm_head.weight[...]
    end = config.pad_token
    if end == config.vocab_size:
        head = head[: end + 1]
    else:
        head = jnp.concatenate([head[: config.vocab_size], head[end : end + 1]])
    ids = jnp.where(targets == end, config.vocab_size, targets)
    return matmul(hidden, head), ids, targets != IGNORE


def _coarse(config: CoarseConfig, network: CausalGPT, batch: Batch, how: dict[str, Any]) -> Predicted:
    n, size = config.semantic_length, config.codebook_size
    hidden = network.hidden(network.embed(batch.inputs), start=n, **how)
    logits = network.logits(hidden, config.code_offset, config.code_offset + config.n_codebooks * size)
    targets = batch.targets[:, n:]
    code = jnp.maximum(targets - config.code_offset, 0)  # of an ignored position: any
    due = (code // size)[..., None] == jnp.arange(config.n_codebooks)
    logits = logits.reshape(*targets.shape, config.n_codebooks, size)
    logits = jnp.sum(jnp.where(due[..., None], logits, 0.0), axis=2)
    return logits, code % size, targets != IGNORE


def unguided(guided: jax.Array, bare: jax.Array, guidance: float) -> jax.Array:
    """Logits of what is likely, of those of what guidance would draw.

    Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) draws from g = bare + guidance · (shown - bare), where
    `shown` are the logits after a prompt with its text or its semantic tokens and `bare` those after one without, and
    needs both at every step. A network whose output is taken for g, and that is trained by the likelihood of this
    function's result, has learned to give g at once: where its loss is least, it is exactly that.
    """
    return (guided + (guidance - 1) * bare) / guidance


def own_codes(config: CoarseConfig, network: CausalGPT, batch: Batch, share: float, key: jax.Array) -> Batch:
    """A coarse batch in which about `share` of the frames show what the network itself draws there.

    That is scheduled sampling (Bengio et al. 2015) in one pass (Mihaylova and Martins 2019): every code is drawn after
    the true ones, at generation's default temperature, and some of the draws become inputs. Targets stay true, but for
    a code whose frame shows another one in a codebook below: there is no right answer to that.
    """
    n, size = config.semantic_length, config.codebook_size
    inputs = batch.inputs[:, n + 1 :]  # what the outputs of the positions before should have been
    code = inputs - config.code_offset
    real = (code >= 0) & (code < config.n_codebooks * size)
    codebook = jnp.where(real, code // size, 0)
    hidden = network.hidden(network.embed(batch.inputs), start=n)[:, :-1]
    logits = network.logits(hidden, config.code_offset, config.code_offset + config.n_codebooks * size)
    logits = logits.reshape(*inputs.shape, config.n_codebooks, size)
    logits = jnp.take_along_axis(logits, codebook[..., None, None], axis=2)[:, :, 0]
    chance, noise = jax.random.split(key)
    noise = jax.random.gumbel(noise, logits.shape, jnp.float32)
    drawn = jnp.argmax(logits / Sampling.coarse_temperature + noise, axis=-1) + config.code_offset + codebook * size
    frame = jnp.cumsum(codebook == 0, axis=1)
    chosen = jnp.take_along_axis(jax.random.uniform(chance, frame.shape), frame % frame.shape[1], axis=1) < share
    shown = jnp.where(chosen & real, drawn.astype(inputs.dtype), inputs)
    wrong = (shown != inputs) & (codebook < config.n_codebooks - 1)
    # A wrong code spoils those of its frame that follow: as many as there are codebooks above its own.
    spoilt = jnp.zeros(batch.targets.shape, bool)
    for later in range(config.n_codebooks - 1):
        here = wrong & (codebook < config.n_codebooks - 1 - later)
        spoilt = spoilt.at[:, n + 1 + later :].max(here[:, : here.shape[1] - later])
    return batch._replace(
        inputs=batch.inputs.at[:, n + 1 :].set(jax.lax.stop_gradient(shown)),
        targets=jnp.where(spoilt, IGNORE, batch.targets),
    )


def _fine(config: FineConfig, network: FineGPT, batch: Batch, dropout: Dropout | None, remat: str) -> Predicted:
    codebook = batch.codebook[:, None, None]
    x = network.embed(0, batch.inputs[:, :, 0])
    for q in range(1, config.n_codebooks):
        x = x + jnp.where(q <= codebook, network.embed(q, batch.inputs[:, :, q]), 0.0)
    hidden = network.hidden(x, dropout=dropout, remat=remat)
    heads = jax.vmap(lambda k: network.head(k)[: config.codebook_size])(batch.codebook)
    return jax.vmap(matmul)(hidden, heads), batch.targets, batch.targets != IGNORE


def scaled(codebooks: np.ndarray, smoothing: float) -> np.ndarray:
    """Codebooks (Q, V, D) of a codec → what `smoothed` takes: `smoothing` mean squares of one are a distance of 1."""
    energy = np.square(codebooks).sum(axis=-1).mean(axis=-1)
    return codebooks / np.sqrt(smoothing * energy)[:, None, None]


def smoothed(logits: jax.Array, ids: jax.Array, vectors: jax.Array) -> jax.Array:
    """Cross-entropy where codes near the true one are right as well, less so the farther they are.

    How right a code is falls with the squared distance d of its vector from the true one, exp(-d), the sum over the
    codes being 1. Label smoothing (Szegedy et al., arXiv 1512.00567), but not towards all codes alike.

    A code of the fine codebooks is a vector that is added to those of the codebooks below. Where the network does not
    know which one it is, a draw from what is likely adds a vector that has nothing to do with the true one: noise, and
    a distance twice as large as without any. Of codes that are near to many others, short ones are near to the most,
    so a network trained so draws a short one where it does not know, and the others where it does.

    Args:
      logits: (B, T, V).
      ids: (B, T); below 0 they count as 0, for the caller to leave out.
      vectors: (B, V, D), of the codebook that each row is due, as `scaled` gives them.

    Returns:
      (B, T), in nats. At best it is the entropy of what is right, not 0.
    """
    true = jnp.take_along_axis(vectors, jnp.maximum(ids, 0)[..., None], axis=1)
    near = 2 * jnp.einsum("btd,bvd->btv", true, vectors) - jnp.sum(jnp.square(vectors), axis=-1)[:, None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jax.nn.softmax(near, axis=-1) * logits, axis=-1)


def _cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """logits (B, T, V), ids (B, T) → (B, T); ids below 0 count as 0, for the caller to leave out."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(ids, 0)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
