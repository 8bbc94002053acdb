"""A batch → the negative log-likelihood of its targets, row by row.

The likelihood is that of the distribution which generation draws from, at temperature 1: over the semantic ids and the
end of speech (10,001 for Bark), over the codes of the codebook that a position is due (1,024). Outputs that are never
candidates (unused rows of a head, semantic ids in the coarse one) take no part, and cost nothing.

Pure JAX; knows networks and batches, and nothing of optimizers, files or devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bark_jax.config import BarkConfig, CoarseConfig, FineConfig, SemanticConfig
from bark_jax.gpt import CausalGPT, FineGPT
from bark_jax.linear import Dropout, matmul
from bark_jax.train.examples import IGNORE, Batch


def nll(
    stage: str,
    config: BarkConfig,
    network: Any,
    batch: Batch,
    *,
    dropout: Dropout | None = None,
    remat: str = "none",
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of a batch.

    Args:
      stage: "text", "coarse" or "fine".
      network: the stage's module, float32 or bfloat16.
      batch: arrays as in `Batch`.
      remat: what to keep for the gradient, see `bark_jax.gpt.REMAT`.

    Returns:
      Per row the sum over its targets (B,) float32, in nats, and the number of targets (B,) int32.
    """
    parts = {"text": _text, "coarse": _coarse, "fine": _fine}[stage]
    part = {"text": config.semantic, "coarse": config.coarse, "fine": config.fine}[stage]
    losses, counted = parts(part, network, batch, dropout, remat)  # type: ignore[operator]
    return jnp.sum(jnp.where(counted, losses, 0.0), axis=1), jnp.sum(counted, axis=1, dtype=jnp.int32)


def _text(
    config: SemanticConfig, network: CausalGPT, batch: Batch, dropout: Dropout | None, remat: str
) -> tuple[jax.Array, jax.Array]:
    n = config.text_length
    x = network.embed(batch.inputs[:, 0])
    x = x.at[:, :n].add(network.embed(batch.inputs[:, 1, :n]))
    hidden = network.hidden(x, start=n, dropout=dropout, remat=remat)
    targets = batch.targets[:, n:]
    head = network.lm_head.weight[...]
    end = config.pad_token
    if end == config.vocab_size:
        head = head[: end + 1]
    else:
        head = jnp.concatenate([head[: config.vocab_size], head[end : end + 1]])
    ids = jnp.where(targets == end, config.vocab_size, targets)
    return _cross_entropy(matmul(hidden, head), ids), targets != IGNORE


def _coarse(
    config: CoarseConfig, network: CausalGPT, batch: Batch, dropout: Dropout | None, remat: str
) -> tuple[jax.Array, jax.Array]:
    n = config.semantic_length
    hidden = network.hidden(network.embed(batch.inputs), start=n, dropout=dropout, remat=remat)
    targets = batch.targets[:, n:]
    size = config.codebook_size
    logits = network.logits(hidden, config.code_offset, config.code_offset + config.n_codebooks * size)
    code = jnp.maximum(targets - config.code_offset, 0)  # of an ignored position: any
    due = (code // size)[..., None] == jnp.arange(config.n_codebooks)
    logits = logits.reshape(*targets.shape, config.n_codebooks, size)
    logits = jnp.sum(jnp.where(due[..., None], logits, 0.0), axis=2)
    return _cross_entropy(logits, code % size), targets != IGNORE


def _fine(
    config: FineConfig, network: FineGPT, batch: Batch, dropout: Dropout | None, remat: str
) -> tuple[jax.Array, jax.Array]:
    codebook = batch.codebook[:, None, None]
    x = network.embed(0, batch.inputs[:, :, 0])
    for q in range(1, config.n_codebooks):
        x = x + jnp.where(q <= codebook, network.embed(q, batch.inputs[:, :, q]), 0.0)
    hidden = network.hidden(x, dropout=dropout, remat=remat)
    heads = jax.vmap(lambda k: network.head(k)[: config.codebook_size])(batch.codebook)
    return _cross_entropy(jax.vmap(matmul)(hidden, heads), batch.targets), batch.targets != IGNORE


def _cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """logits (B, T, V), ids (B, T) → (B, T); ids below 0 count as 0, for the caller to leave out."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(ids, 0)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen
