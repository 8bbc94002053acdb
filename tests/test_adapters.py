"""Laws of `bark_jax.adapters`: a row with an adapter = the row alone, none = the base, merged = adapted; and its files.

Needs no torch and no trainer: adapters are drawn by numpy, large enough to change what is said.
"""

from __future__ import annotations

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from click.testing import CliRunner

import bark_jax
import models
from bark_jax import adapters, audio, cli, coarse, fine, sampling, semantic, weights
from bark_jax.adapters import TARGETS, Adapter, AdapterError, Part
from bark_jax.flat import Weights
from bark_jax.gpt import KVCache
from bark_jax.linear import LowRank
from bark_jax.settings import Sampling

CONFIG = models.config()
BFLOAT16 = weights.DTYPES["bfloat16"]


def base(network: str, dtype: str = "float32", seed: int = 0) -> Weights:
    """A network of the test model; as `weights.read` lowers it."""
    full = models.networks(CONFIG, seed)[network]
    if dtype == "float32":
        return full
    low = {
        name: jnp.asarray(np.asarray(leaf).astype(weights.DTYPES[dtype]) if leaf.ndim >= 2 else leaf)
        for name, leaf in weights.names(full.module).items()
    }
    return Weights.of(weights.fill(weights.networks(CONFIG)[network], low))


def part(  # type: ignore[no-untyped-def]
    network: str,
    rank: int,
    targets=TARGETS,
    *,
    config=CONFIG,
    blocks=(0, 1),
    seed=0,
    std=0.2,
    dtype=np.float32,
    alpha=2.0,
):
    rng = np.random.default_rng([seed, rank])
    module = models.networks(config)[network].module
    tensors = {}
    for path, linear in adapters.linears(module, targets).items():
        if int(path.split(".")[1]) in blocks:
            n_out, n_in = linear.weight.shape
            a, b = (std * rng.standard_normal(shape, np.float32) for shape in ((rank, n_in), (n_out, rank)))
            tensors[path] = a.astype(dtype), b.astype(dtype)
    return Part(tensors, alpha, adapters.base_digest(module), {"made": "by numpy"})


def adapter(*networks: str, rank: int = 3, **options) -> Adapter:  # type: ignore[no-untyped-def]
    return Adapter({network: part(network, rank, **options) for network in networks}, CONFIG.fingerprint)


def several(network: str) -> list[Adapter]:
    """Of different ranks, scales and targets; the third is for another network, the last for one linear alone."""
    other = "fine" if network != "fine" else "coarse"
    return [
        adapter(network, rank=3),
        adapter(network, rank=5, targets=TARGETS[:1], alpha=7.0),
        adapter(other, rank=2),
        adapter(network, rank=8, targets=TARGETS[2:], seed=1),
        adapter(network, rank=1, targets=TARGETS[3:], blocks=(1,), std=1.0),
    ]


@jax.jit
def logits(network: Weights, ids: jax.Array) -> jax.Array:
    """All positions of a causal network: ids (B, T)."""
    module = network.module
    return module.logits(module.hidden(module.embed(ids)))


@jax.jit
def decoded(network: Weights, ids: jax.Array) -> jax.Array:
    """The same with a cache: a prompt of 5, then token by token."""
    module, (rows, total), prompt = network.module, ids.shape, 5
    filled = module.prefill(module.embed(ids[:, :prompt]))
    cache = jax.tree.map(
        lambda old, new: old.at[:, :prompt].set(new), KVCache.zeros(module.config, rows, total), filled
    )

    def step(cache, t):  # type: ignore[no-untyped-def]
        seen = jnp.broadcast_to(jnp.arange(total) <= t, (rows, total))
        cache, hidden = module.decode_step(cache, ids[:, t], jnp.full((rows,), t), t, seen)
        return cache, module.logits(hidden)

    return jax.lax.scan(step, cache, jnp.arange(prompt, total))[1].transpose(1, 0, 2)


@jax.jit
def filled(network: Weights, ids: jax.Array) -> jax.Array:
    """Codebook 3 of the fine network: ids (B, T)."""
    return network.module(3, ids[..., None] % 60 + jnp.arange(8) % 4)


WAYS = {"semantic": (logits,), "coarse": (decoded,), "fine": (filled,)}


def some_ids(rows: int, length: int = 24, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 200, (rows, length)), jnp.int32)


class TestRows:
    @pytest.mark.parametrize("network", adapters.NETWORKS)
    @pytest.mark.parametrize(("rows", "dtype"), [(4, "float32"), (4, "bfloat16"), (1, "float32")])
    def test_each_row_has_its_own(self, network, rows, dtype):  # type: ignore[no-untyped-def]
        plain, many = base(network, dtype), several(network)
        adapted = adapters.attach(plain, network, many)
        ids = some_ids(rows)
        for run in WAYS[network]:
            without = np.asarray(run(plain, ids))
            all_rows = [np.asarray(run(adapted.rows([i] * rows), ids)) for i in range(len(many) + 1)]
            counted = run._cache_size()
            np.testing.assert_array_equal(all_rows[0], without)
            np.testing.assert_array_equal(all_rows[3], without)  # it is for another network
            for i in (1, 2, 4, 5):
                assert np.abs(all_rows[i] - without).max(axis=(1, 2)).min() > 0.05
            assert len({y.tobytes() for y in all_rows}) == len(many)
            if rows == 1:
                continue
            for order in ([0, 1, 2, 4], [5, 0, 0, 1], [4, 3, 2, 1], [1, 1, 5, 5]):
                y = np.asarray(run(adapted.rows(order), ids))
                for row, i in enumerate(order):
                    np.testing.assert_array_equal(y[row], all_rows[i][row])
                # Other neighbours, in other slots.
                turned = np.asarray(run(adapted.rows(order[::-1]), ids[::-1]))
                np.testing.assert_array_equal(turned[::-1], y)
            assert run._cache_size() == counted

    def test_beside_others_an_adapter_is_what_it_is_alone(self):
        plain, many, ids = base("semantic"), several("semantic"), some_ids(2)
        together = adapters.attach(plain, "semantic", many)
        for i in (1, 2, 4, 5):
            alone = adapters.attach(plain, "semantic", [many[i - 1]])
            np.testing.assert_allclose(
                logits(together.rows([i, i]), ids), logits(alone.rows([1, 1]), ids), atol=1e-5, rtol=1e-5
            )

    def test_no_adapter_for_the_network_leaves_it_as_it_is(self):
        plain = base("semantic")
        for none in ([], [adapter("fine")]):
            same = adapters.attach(plain, "semantic", none).rows([0, len(none)])
            assert same.structure == plain.structure
            assert all(a is b for a, b in zip(same.leaves, plain.leaves, strict=True))

    def test_weights_are_shared_and_take_the_dtype_of_the_base(self):
        for dtype in ("float32", "bfloat16"):
            plain = base("coarse", dtype)
            got = weights.names(adapters.attach(plain, "coarse", several("coarse")).rows([0]).module)
            for name, leaf in weights.names(plain.module).items():
                found = got.get(name)
                assert leaf is (found if found is not None else got[name.removesuffix("weight") + "base.weight"])
            new = {name: leaf.dtype for name, leaf in got.items() if name.endswith((".a", ".b"))}
            assert len(new) == 16 and set(new.values()) == {jnp.dtype(dtype)}
            assert all(leaf.dtype == np.float32 for name, leaf in got.items() if name.endswith(".gate"))

    def test_a_wrong_index(self):
        adapted = adapters.attach(base("coarse"), "coarse", [adapter("coarse")])
        for wrong in (-1, 2):
            with pytest.raises(ValueError, match=f"index {wrong} is out of range: it must be 0 .* to 1"):
                adapted.rows([0, wrong])

    def test_what_does_not_fit(self):
        plain, good = base("coarse"), adapter("coarse").networks["coarse"]
        with pytest.raises(AdapterError, match="'codec' cannot have adapters: choose from semantic, coarse, fine"):
            adapters.attach(plain, "codec", [])
        pair = good.tensors["blocks.0.attn.c_attn"]
        for tensors, words in (
            ({"blocks.2.attn.c_attn": pair}, "no linear 'blocks.2.attn.c_attn'.*blocks.0.attn.c_attn, .*c_proj"),
            ({"blocks.0.mlp.c_fc": pair}, r"c_fc: a \(3, 32\) and b \(96, 3\) do not fit.*32 inputs and 128 outputs"),
        ):
            wrong = Adapter({"coarse": Part(tensors, 1.0, good.base)}, "test")
            with pytest.raises(AdapterError, match=f"adapter 2: .*{words}"):
                adapters.attach(plain, "coarse", [adapter("coarse"), wrong])
            with pytest.raises(AdapterError, match=words):
                adapters.merge(plain.module, "coarse", wrong)

    def test_another_base(self):
        digest, other = (adapters.base_digest(base("coarse", seed=seed).module) for seed in (0, 1))
        with pytest.raises(AdapterError, match=f"'anna': trained on another coarse .*'{digest}'.*'{other}'.*info"):
            adapters.attach(base("coarse", seed=1), "coarse", [adapter("coarse")], ["anna"])
        with pytest.raises(AdapterError, match="another coarse network"):
            adapters.merge(base("coarse", seed=1).module, "coarse", adapter("coarse"))


class TestMerge:
    @pytest.mark.parametrize("network", adapters.NETWORKS)
    def test_merged_is_adapted(self, network):
        plain, ids = base(network), some_ids(2)
        run = filled if network == "fine" else logits
        for one in (adapter(network), adapter(network, rank=8, targets=TARGETS[1:3], alpha=0.5)):
            tensors = adapters.merge(plain.module, network, one)
            arrays = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
            merged = Weights.of(weights.fill(weights.networks(CONFIG)[network], arrays))
            adapted = adapters.attach(plain, network, [one]).rows([1, 1])
            np.testing.assert_allclose(run(merged, ids), run(adapted, ids), atol=1e-5, rtol=1e-5)
            assert np.abs(run(merged, ids) - run(plain, ids)).max() > 0.05

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_the_sum_is_rounded_once(self, dtype):
        plain, one = base("coarse", dtype).module, adapter("coarse", targets=TARGETS[:2], dtype=weights.DTYPES[dtype])
        tensors, merged = weights.names(plain), adapters.merge(weights.names(plain), "coarse", one)
        assert list(merged) == list(tensors)
        changed = {f"{path}.weight" for path in one.networks["coarse"].tensors}
        for name, tensor in merged.items():
            if name not in changed:
                assert tensor is tensors[name]
                continue
            a, b = (x.astype(np.longdouble) for x in one.networks["coarse"].tensors[name.removesuffix(".weight")])
            exact = np.asarray(tensors[name]).astype(np.longdouble) + np.longdouble(2.0) / 3 * (b @ a)
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, exact.astype(np.float32))

    def test_nothing_for_this_network(self):
        tensors = weights.names(base("coarse").module)
        merged = adapters.merge(tensors, "coarse", adapter("fine"))
        assert all(merged[name] is tensors[name] for name in tensors)

    def test_needs_a_network_without_adapters(self):
        wrapped = adapters.attach(base("coarse"), "coarse", [adapter("coarse")]).rows([1]).module
        with pytest.raises(AdapterError, match=r"no linear 'blocks.0.attn.c_attn' without adapters"):
            adapters.merge(wrapped, "coarse", adapter("coarse"))


class TestWrap:
    @pytest.mark.parametrize("network", adapters.NETWORKS)
    def test_an_abstract_network(self, network):
        abstract = weights.networks(CONFIG)[network]
        before = weights.names(abstract)
        paths = adapters.linears(abstract, TARGETS[1:3])
        assert list(paths) == [f"blocks.{i}.{target}" for i in (0, 1) for target in TARGETS[1:3]]
        wrapped = adapters.wrap(abstract, adapters.shapes(abstract, dict.fromkeys(paths, 4)))
        after = weights.names(wrapped)
        new = {"blocks.1.mlp.c_fc.a": (4, 32), "blocks.1.mlp.c_fc.b": (128, 4), "blocks.1.mlp.c_fc.gate": (1, 4)}
        assert {name: after[name].shape for name in new} == new
        assert set(before) - set(after) == {f"{path}.weight" for path in paths}
        assert all(after[f"{path}.base.weight"].shape == before[f"{path}.weight"].shape for path in paths)
        assert len(after) == len(before) + 3 * len(paths)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.dtype == np.float32 for leaf in after.values())
        assert weights.names(abstract).keys() == before.keys()  # the network given is as it was
        zeros = {name: jnp.zeros(leaf.shape) for name, leaf in after.items()}
        filled = weights.fill(wrapped, zeros)
        assert isinstance(filled.blocks[0].attn.c_proj, LowRank)
        assert not isinstance(filled.blocks[0].attn.c_attn, LowRank)

    def test_a_real_network(self):
        module = base("coarse").module
        pairs = {
            path: tuple(jnp.zeros(x.shape) for x in pair)
            for path, pair in adapters.shapes(module, {"blocks.1.attn.c_attn": 2}).items()
        }
        wrapped = adapters.wrap(module, pairs)
        ids = some_ids(2)
        np.testing.assert_array_equal(logits(Weights.of(wrapped), ids), logits(base("coarse"), ids))
        assert adapters.linears(wrapped)["blocks.1.attn.c_attn"].base.weight is not None
        with pytest.raises(AdapterError, match=r"'blocks.1.attn.c_attn' has adapters already"):
            adapters.shapes(wrapped, {"blocks.1.attn.c_attn": 2})
        with pytest.raises(AdapterError, match="has adapters already"):
            adapters.wrap(wrapped, pairs)

    def test_wrong_names(self):
        abstract = weights.networks(CONFIG)["coarse"]
        with pytest.raises(AdapterError, match=r"target 'c_attn' is unknown: choose from attn\.c_attn, "):
            adapters.linears(abstract, ["c_attn"])
        for path in ("attn.c_attn", "blocks.0.attn", "lm_head", "blocks.00.attn.c_attn", "blocks.-1.attn.c_attn"):
            with pytest.raises(AdapterError, match=r"is unknown: choose blocks.N with one of attn.c_attn, "):
                adapters.shapes(abstract, {path: 2})
        with pytest.raises(AdapterError, match=r"'blocks.2.attn.c_attn' is not in the network: its blocks are 0 to 1"):
            adapters.shapes(abstract, {"blocks.2.attn.c_attn": 2})


class TestBaseDigest:
    @pytest.mark.parametrize("network", adapters.NETWORKS)
    def test_copies_of_one_model_have_one(self, network):
        module = base(network).module
        digest = adapters.base_digest(module)
        assert len(digest) == 16 and int(digest, 16)
        assert adapters.base_digest(base(network, "bfloat16").module) == digest
        rounded = {
            name: np.asarray(leaf).astype(np.float16) if leaf.ndim > 1 else leaf
            for name, leaf in weights.names(module).items()
        }
        assert adapters.base_digest({**rounded, "wpe.weight": rounded["wpe.weight"].astype(np.float32)}) == digest
        assert adapters.base_digest(rounded) == digest
        ranks = dict.fromkeys(adapters.linears(module), 2)
        pairs = {
            path: tuple(np.ones(x.shape, x.dtype) for x in pair)
            for path, pair in adapters.shapes(module, ranks).items()
        }
        assert adapters.base_digest(adapters.wrap(module, pairs)) == digest

    def test_others_have_others(self):
        tensors = {name: np.array(leaf) for name, leaf in weights.names(base("fine").module).items()}
        seen = {adapters.base_digest(tensors)}
        for name in ("ln_f.weight", "ln_f.bias", "blocks.1.ln_2.weight", "wpe.weight"):
            changed = np.array(tensors[name])
            changed[(0,) * changed.ndim] = -changed[(0,) * changed.ndim] - np.float32(1e-6)
            seen.add(adapters.base_digest({**tensors, name: changed}))
        seen |= {adapters.base_digest(base(network, seed=1).module) for network in adapters.NETWORKS}
        assert len(seen) == 8
        wte = {**tensors, "wtes.weight": -tensors["wtes.weight"]}  # neither table nor linear counts
        assert adapters.base_digest(wte) in seen


class TestFiles:
    @pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
    def test_round_trip(self, tmp_path, dtype):
        one = adapter("coarse", "fine", rank=5, targets=TARGETS[1:], blocks=(1,), dtype=dtype, alpha=4)
        adapters.save(tmp_path / "a.safetensors", one)
        again = adapters.read(tmp_path / "a.safetensors", CONFIG)
        assert again.fingerprint == "test" and list(again.networks) == ["coarse", "fine"]
        for network, ours in one.networks.items():
            theirs = again.networks[network]
            assert (theirs.rank, theirs.alpha, theirs.scale) == (5, 4.0, 0.8)
            assert theirs.targets == TARGETS[1:] and theirs.base == ours.base and theirs.notes == {"made": "by numpy"}
            assert list(theirs.tensors) == list(ours.tensors)
            for path, pair in ours.tensors.items():
                for x, y in zip(pair, theirs.tensors[path], strict=True):
                    assert y.dtype == dtype
                    np.testing.assert_array_equal(x, y)
        assert os.listdir(tmp_path) == ["a.safetensors"]
        with safetensors.safe_open(tmp_path / "a.safetensors", "numpy") as file:
            assert "coarse.blocks.1.attn.c_proj.a" in file.keys()  # noqa: SIM118
            assert file.metadata()["format"] == "bark-jax-adapter-1"

    def test_jax_arrays_are_taken(self, tmp_path):
        one = adapter("coarse").networks["coarse"]
        low = {path: tuple(jnp.asarray(x, jnp.bfloat16) for x in pair) for path, pair in one.tensors.items()}
        adapters.save(tmp_path / "a.safetensors", Adapter({"coarse": Part(low, 1.0, one.base)}, "test"))
        read = adapters.read(tmp_path / "a.safetensors", CONFIG).networks["coarse"]
        assert all(x.dtype == BFLOAT16 for pair in read.tensors.values() for x in pair)

    def test_a_failed_write_leaves_what_was_there(self, tmp_path, monkeypatch):
        path = tmp_path / "a.safetensors"
        adapters.save(path, adapter("coarse"))
        before = path.read_bytes()

        def full(*_):  # type: ignore[no-untyped-def]
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            adapters.save(path, adapter("fine"))
        assert os.listdir(tmp_path) == ["a.safetensors"] and path.read_bytes() == before
        with pytest.raises(AdapterError, match=r"ends in '.bin': an adapter is a .safetensors file"):
            adapters.save(tmp_path / "a.bin", adapter("coarse"))

    def test_join(self):
        one, two = adapter("coarse"), adapter("semantic", "fine")
        assert set(adapters.join([one, two]).networks) == {"coarse", "semantic", "fine"}
        with pytest.raises(AdapterError, match="two adapters for coarse cannot be one"):
            adapters.join([one, two, one])
        with pytest.raises(AdapterError, match="token spaces suno, test cannot be one"):
            adapters.join([one, Adapter(two.networks)])


def pair(rank=2, n_in=32, n_out=96, dtype=np.float32):  # type: ignore[no-untyped-def]
    return np.ones((rank, n_in), dtype), np.ones((n_out, rank), dtype)


LINEAR = "blocks.0.attn.c_attn"
PARTS = {
    "nothing": ({}, {}, "has no tensors: it must have a pair"),
    "linear": ({"lm_head": pair()}, {}, "linear 'lm_head' is unknown: choose blocks.N"),
    "rank": ({LINEAR: pair(), "blocks.1.attn.c_attn": pair(3)}, {}, r"c_attn.a has shape \(3, 32\): with rank 2"),
    "ranks of a pair": ({LINEAR: (pair(2)[0], pair(3)[1])}, {}, r"c_attn.b has shape \(96, 3\): .* it is \(out, 2\)"),
    "no rank": ({LINEAR: pair(0)}, {}, r"c_attn.a has shape \(0, 32\)"),
    "one axis": ({LINEAR: (np.ones(3, np.float32),) * 2}, {}, r"c_attn.a has shape \(3,\)"),
    "dtype": ({LINEAR: pair(dtype=np.float64)}, {}, "c_attn.a is float64: choose float32 or bfloat16"),
    "nan": ({LINEAR: (pair()[0], pair()[1] * np.float32("nan"))}, {}, "c_attn.b holds NaN or infinity"),
    "infinity": ({LINEAR: tuple(x * np.inf for x in pair(dtype=BFLOAT16))}, {}, "c_attn.a holds NaN or infinity"),
    "huge": ({LINEAR: (pair()[0] * np.float32(-2e6), pair()[1])}, {}, "a value of size 2e.06: the limit is 1e.06"),
    "alpha": ({LINEAR: pair()}, {"alpha": 0.0}, "alpha is 0.0: it must be a number above 0"),
    "alpha NaN": ({LINEAR: pair()}, {"alpha": float("nan")}, "alpha is nan: it must be"),
    "alpha of another kind": ({LINEAR: pair()}, {"alpha": "2"}, "alpha is 2: it must be"),
    "huge alpha": ({LINEAR: pair()}, {"alpha": 10**400}, "alpha is 1000.*at most 1e.06"),
    "notes": ({LINEAR: pair()}, {"notes": {"steps": 3}}, "notes are .'steps': 3.: they must be strings"),
}


@pytest.mark.parametrize("case", PARTS, ids=str)
def test_a_part_that_contradicts_itself(case):
    tensors, options, words = PARTS[case]
    with pytest.raises(AdapterError, match=words):
        Part(tensors, **{"alpha": 1.0, "base": "0", **options})


def test_networks_of_an_adapter():
    with pytest.raises(AdapterError, match="'codec' cannot have adapters: choose from semantic, coarse, fine"):
        Adapter({"codec": adapter("coarse").networks["coarse"]})
    with pytest.raises(AdapterError, match="no networks: it must have at least one of semantic, coarse, fine"):
        Adapter({})


def metadata(**changes):  # type: ignore[no-untyped-def]
    """A change of the file's metadata; None removes a key."""

    def change(tensors, about):  # type: ignore[no-untyped-def]
        about.update(changes)
        for key in [key for key, value in about.items() if value is None]:
            del about[key]

    return change


def networks(**changes):  # type: ignore[no-untyped-def]
    """A change of what the metadata say of the coarse network."""

    def change(tensors, about):  # type: ignore[no-untyped-def]
        tree = json.loads(about["networks"])
        tree["coarse"].update(changes)
        about["networks"] = json.dumps({"coarse": {k: v for k, v in tree["coarse"].items() if v is not None}})

    return change


def renamed(new):  # type: ignore[no-untyped-def]
    def change(tensors, about):  # type: ignore[no-untyped-def]
        about["networks"] = about["networks"].replace('"coarse"', f'"{new}"')

    return change


def tensor(name, change):  # type: ignore[no-untyped-def]
    """A tensor changed by a function, or removed where it gives None."""
    key = f"coarse.blocks.0.attn.c_attn.{name}"

    def apply(tensors, about):  # type: ignore[no-untyped-def]
        new = change(tensors.pop(key))
        if new is not None:
            tensors[key] = np.ascontiguousarray(new)

    return apply


def extra(name, shape=(3, 32)):  # type: ignore[no-untyped-def]
    return lambda tensors, about: tensors.update({name: np.ones(shape, np.float32)})


def nothing(tensors, about):  # type: ignore[no-untyped-def]
    tensors.clear()


def set_nan(x):  # type: ignore[no-untyped-def]
    x[0, 0] = np.nan
    return x


FILES = {
    "no format": (metadata(format=None), "format 'None': an adapter has 'bark-jax-adapter-1'"),
    "another format": (metadata(format="bark-jax-adapter-2"), "format 'bark-jax-adapter-2'"),
    "unknown key": (metadata(more="x"), "metadata fingerprint, format, more, networks: an adapter has format, "),
    "missing key": (metadata(fingerprint=None), "metadata format, networks: an adapter has"),
    "fingerprint": (metadata(fingerprint="suno"), "for a model of the token space 'suno': this model's is 'test'"),
    "no JSON": (metadata(networks="{"), "networks is not JSON"),
    "deep JSON": (metadata(networks="[" * 90_000), "networks is not JSON"),
    "a list": (metadata(networks="[]"), r"networks is \[\]: it must be an object"),
    "no networks": (metadata(networks="{}"), "it must be an object"),
    "unknown network": (renamed("codec"), "codec is unknown: choose from semantic, coarse, fine"),
    "another network": (renamed("fine"), "coarse.blocks.0.attn.c_attn.a belongs to no network of its metadata: fine"),
    "part": (metadata(networks='{"coarse": 3}'), "coarse has 3: it must have rank, alpha, targets, base, notes"),
    "unknown key of a part": (networks(more=1), "coarse has alpha, base, more, .*: it must have rank, alpha"),
    "missing key of a part": (networks(base=None), "it must have rank, alpha, targets, base, notes"),
    "type of rank": (networks(rank="3"), "coarse: rank is 3: it must be of type int"),
    "bool": (networks(rank=True), "rank is True: it must be of type int"),
    "type of base": (networks(base=3), "base is 3: it must be of type str"),
    "rank": (networks(rank=4), r"a has shape \(3, 32\), the model and rank 4 ask for \(4, 32\)"),
    "alpha": (networks(alpha=-1.0), "coarse: alpha is -1.0: it must be a number above 0"),
    "alpha NaN": (networks(alpha=float("nan")), "alpha is nan"),
    "targets": (networks(targets=["mlp.c_fc"]), r"targets is \['mlp.c_fc'\], its tensors are for \['attn.c_attn', "),
    "notes": (networks(notes={"a": 1}), "notes are"),
    "tensors": (nothing, "coarse has no tensors"),
    "a alone": (tensor("b", lambda x: None), "attn.c_attn.a is alone: .*c_attn must have both a and b"),
    "b alone": (tensor("a", lambda x: None), "attn.c_attn.b is alone"),
    "shape": (tensor("a", lambda x: x[:, :31]), r"a has shape \(3, 31\), .* ask for \(3, 32\)"),
    "shape of b": (tensor("b", lambda x: x.T), r"b has shape \(3, 96\), .* ask for \(96, 3\)"),
    "axes": (tensor("a", lambda x: x[0]), r"a has shape \(32,\)"),
    "dtype": (tensor("a", lambda x: x.astype(np.float16)), "a is F16: choose F32 or BF16"),
    "integers": (tensor("a", lambda x: x.astype(np.int32)), "a is I32: choose F32 or BF16"),
    "nan": (tensor("b", set_nan), "coarse: blocks.0.attn.c_attn.b holds NaN or infinity"),
    "huge": (tensor("a", lambda x: 1e30 * x), "c_attn.a holds a value of size .*e.(29|30): the limit is 1e.06"),
    "block": (extra("coarse.blocks.2.attn.c_attn.a"), "c_attn.a is unknown: .* with blocks 0 to 1 and attn.c_attn"),
    "linear": (extra("coarse.lm_head.a"), "coarse.lm_head.a is unknown: names are coarse.blocks.0.attn.c_attn.a or .b"),
    "neither a nor b": (extra("coarse.blocks.0.attn.c_attn.gate"), "c_attn.gate is unknown"),
    "no network in the name": (extra("weight"), "weight belongs to no network"),
    "of another network": (extra("fine.blocks.0.attn.c_attn.a"), "belongs to no network of its metadata: coarse"),
}


@pytest.mark.parametrize("case", FILES, ids=str)
def test_a_file_that_is_wrong(tmp_path, case):
    change, words = FILES[case]
    path = tmp_path / "a.safetensors"
    adapters.save(path, adapter("coarse"))
    with safetensors.safe_open(path, "numpy") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, about)
    safetensors.numpy.save_file(tensors, path, about)
    with pytest.raises(AdapterError, match=words) as error:
        adapters.read(path, CONFIG)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 2000


def test_many_problems_are_named_together(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {f"coarse.x{i}.a": np.ones(1, np.float32) for i in range(30)}
    about = {"rank": 3, "alpha": 1.0, "targets": [], "base": "", "notes": {}}
    saved = {"format": adapters.FORMAT, "fingerprint": "test", "networks": json.dumps({"coarse": about})}
    safetensors.numpy.save_file(tensors, path, saved)
    with pytest.raises(AdapterError, match="and 10 more") as error:
        adapters.read(path, CONFIG)
    assert str(error.value).count("is unknown") == 20


BYTES = {
    "empty": (b"", "is cut off, or no safetensors file: it has 0 bytes"),
    "short": (b"\0" * 7, "it has 7 bytes"),
    "a text": (b"This is not an adapter." * 9, "is cut off, or no safetensors file"),
    "a huge header": (struct.pack("<Q", 2 << 20) + b" " * (2 << 20), "header of 2,097,152 bytes: .* 1,048,576"),
    "a header of noise": (struct.pack("<Q", 64) + b"x" * 99, "no safetensors file, or a broken one"),
    "a header alone": (struct.pack("<Q", 2) + b"{}", "format 'None': an adapter has"),
    "a list": (struct.pack("<Q", 2) + b"[]", "no safetensors file, or a broken one"),
}


@pytest.mark.parametrize("case", BYTES, ids=str)
def test_a_file_of_another_kind(tmp_path, case):
    data, words = BYTES[case]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(AdapterError, match=words):
        adapters.read(tmp_path / "a.safetensors", CONFIG)


def test_a_file_cut_anywhere(tmp_path):
    path = tmp_path / "a.safetensors"
    adapters.save(path, adapter("coarse", rank=1, targets=TARGETS[:1], blocks=(0,)))
    data = path.read_bytes()
    for n in range(0, len(data), 61):
        path.write_bytes(data[:n])
        with pytest.raises(AdapterError, match=r"cut off|broken"):
            adapters.read(path, CONFIG)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors"):
        adapters.read(tmp_path / "none.safetensors", CONFIG)
    with pytest.raises(OSError):
        adapters.read(tmp_path, CONFIG)


# --- the whole way ----------------------------------------------------------------------------------------------------

SHORT = Sampling(max_duration_s=0.5, allow_early_stop=False)


def bark_with(**more):  # type: ignore[no-untyped-def]
    given = {"x": adapter(*adapters.NETWORKS, rank=4), "y": adapter("coarse", rank=2, targets=TARGETS[:2])}
    return models.model(CONFIG, adapters=given, **more)


@pytest.fixture(scope="module")
def bark():  # type: ignore[no-untyped-def]
    return bark_with(rows=2)


@pytest.fixture(scope="module")
def plain():  # type: ignore[no-untyped-def]
    return models.model(CONFIG, rows=2)


def same(a, b):  # type: ignore[no-untyped-def]
    for name in ("semantic", "coarse", "fine", "audio"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def programs():  # type: ignore[no-untyped-def]
    jitted = (semantic.insert, semantic.take, semantic.advance, coarse.insert, coarse.take, coarse.fill, coarse.extend)
    jitted += (coarse.advance, fine.advance)
    return [f._cache_size() for f in (*jitted, sampling._stage_keys)]


class TestBark:
    def test_each_row_has_its_own(self, bark, plain):
        alone = {
            (text, name): bark.generate(text, adapter=name, seed=5, sampling=SHORT)
            for text in ("a", "b")
            for name in ("x", "y", None)
        }
        counted = programs()
        for names in (["x", None], [None, "x"], ["x", "y"], ["y", None], ["x", "x"]):
            batch = bark.generate(["a", "b"], adapter=names, seed=5, sampling=SHORT)
            for text, name, speech in zip("ab", names, batch, strict=True):
                same(speech, alone[text, name])
        assert programs() == counted, "another adapter compiled something"
        for text in "ab":
            same(alone[text, None], plain.generate(text, seed=5, sampling=SHORT))
            x, y, none = (alone[text, name] for name in ("x", "y", None))
            assert not np.array_equal(x.semantic, none.semantic)
            np.testing.assert_array_equal(y.semantic, none.semantic)  # y is for coarse alone
            assert not np.array_equal(y.coarse, none.coarse) and not np.array_equal(x.coarse, y.coarse)

    def test_stages_one_by_one_give_the_whole(self, bark):
        names, options = ["x", "y"], {"seed": [1, 2], "sampling": SHORT}
        whole = bark.generate(["a", "b"], adapter=names, **options)
        words = bark.text_to_semantic(["a", "b"], adapter=names, **options)
        two = bark.semantic_to_coarse(words, adapter=names, **options)
        eight = bark.coarse_to_fine(two, adapter=names, **options)
        for i, speech in enumerate(whole):
            np.testing.assert_array_equal(words[i], speech.semantic)
            np.testing.assert_array_equal(two[i], speech.coarse)
            np.testing.assert_array_equal(eight[i], speech.fine)
        other = bark.coarse_to_fine(two, **options)
        assert not np.array_equal(other[0], eight[0])
        np.testing.assert_array_equal(other[1], eight[1])

    def test_a_merged_model_says_the_same(self, bark):
        merged = {"codec": models.networks(CONFIG)["codec"]}
        one = adapter(*adapters.NETWORKS, rank=4)
        for network in adapters.NETWORKS:
            tensors = adapters.merge(base(network).module, network, one)
            arrays = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
            merged[network] = Weights.of(weights.fill(weights.networks(CONFIG)[network], arrays))
        again = bark_jax.Bark(CONFIG, models.tokenizer_json(), merged, rows=2)
        a = bark.generate("hello", adapter="x", seed=3, sampling=SHORT)
        b = again.generate("hello", seed=3, sampling=SHORT)
        for name in ("semantic", "coarse", "fine"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert len(set(a.semantic.tolist())) > 5

    def test_without_adapters_nothing_is_different(self, plain, bark):
        plain.generate("warm", seed=1, sampling=SHORT)
        counted = programs()
        only = models.model(CONFIG, rows=2, adapters={"fine only": adapter("fine", rank=4)})
        assert only.generate("a", seed=1, sampling=SHORT).duration > 0
        assert programs()[:5] == counted[:5]  # networks that no adapter changes run their own programs
        assert plain.adapters == () and only.adapters == ("fine only",) and bark.adapters == ("x", "y")
        assert plain.parameters() == bark.parameters() and plain.bases() == bark.bases()

    def test_unknown_names(self, bark, plain):
        with pytest.raises(AdapterError, match=r"^adapter is 'z': choose None, x, y$"):
            bark.generate("a", adapter="z")
        with pytest.raises(AdapterError, match=r"^item 1: adapter is .\['x'\].: choose"):
            bark.text_to_semantic(["a", "b"], adapter=["x", ["x"]])
        with pytest.raises(AdapterError, match=r"^adapter is 'x': `load` was given none$"):
            plain.generate("a", adapter="x")
        with pytest.raises(ValueError, match="adapter has 1 items for 2 inputs"):
            bark.generate(["a", "b"], adapter=["x"])
        with pytest.raises(ValueError, match="adapter is a list of 2, but there is one input"):
            bark.generate("a", adapter=["x", "y"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):  # type: ignore[no-untyped-def]
    """A model, an adapter for all networks, and the same in three files."""
    folder = tmp_path_factory.mktemp("adapters")
    models.save(folder / "model", CONFIG)
    whole = adapter(*adapters.NETWORKS, rank=4)
    adapters.save(folder / "whole.safetensors", whole)
    for network, values in whole.networks.items():
        adapters.save(folder / f"{network}.safetensors", Adapter({network: values}, "test"))
    return folder


class TestLoad:
    def test_files(self, folder, bark):
        """One file for all networks, or one for each; an adapter that was never a file beside them."""
        whole, each = folder / "whole.safetensors", [folder / f"{network}.safetensors" for network in adapters.NETWORKS]
        mine = adapter("coarse", rank=2, targets=TARGETS[:2])
        expected = bark.generate(["a", "b"], adapter=["x", "y"], seed=5, sampling=SHORT)
        for given in (str(whole), each):
            loaded = bark_jax.load(folder / "model", device="cpu", rows=2, adapters={"one": given, "mine": mine})
            assert loaded.adapters == ("one", "mine")
            spoken = loaded.generate(["a", "b"], adapter=["one", "mine"], seed=5, sampling=SHORT)
            for i in range(2):
                same(spoken[i], expected[i])

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
    def test_low_weights(self, folder, dtype):
        low = bark_jax.load(folder / "model", device="cpu", dtype=dtype, adapters={"a": folder / "coarse.safetensors"})
        words = np.arange(8)
        two, other = (low.semantic_to_coarse(words, seed=1, adapter=name) for name in ("a", None))
        assert two.shape == other.shape and not np.array_equal(two, other)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"a": "none.safetensors"}, "none.safetensors"),
            ({"a": 3}, "adapter 'a' is '3': it must be a path or an Adapter"),
            ({"a": []}, "adapter 'a' is an empty list"),
            ({"": "x"}, "the name of an adapter is '': it must be 1 to 100 printable characters"),
            ({3: "x"}, "the name of an adapter is '3'"),
            ("x.safetensors", "adapters is 'x.safetensors': it must be a mapping"),
            ({"a": [adapter("fine"), adapter("fine")]}, "adapter 'a': two adapters for fine cannot be one"),
            ({"a": Adapter(adapter("fine").networks)}, "adapter 'a' is for a model of the token space 'suno'"),
        ],
    )
    def test_what_cannot_be_loaded(self, given, words):
        with pytest.raises((AdapterError, OSError), match=words):
            adapters.gather(given, CONFIG)

    def test_what_does_not_fit_the_model(self, folder):
        other = Part(adapter("fine").networks["fine"].tensors, 1.0, "0" * 16)
        for given, words in (
            (Adapter({"fine": other}, "test"), "'a': trained on another fine network: on base '0000000000000000', and"),
            (3, "adapter 'a' is '3': it must be a path or an Adapter"),
        ):
            with pytest.raises(AdapterError, match=words):
                bark_jax.load(folder / "model", device="cpu", adapters={"a": given})


class TestCommand:
    def call(self, *arguments: object):  # type: ignore[no-untyped-def]
        return CliRunner().invoke(cli.main, [str(a) for a in arguments], prog_name="bark-jax")

    def test_say(self, folder, tmp_path):
        say = ["say", "-q", "-m", folder / "model", "--seed", 5, "--max-duration", 0.3, "--float", "hello"]
        coarse, fine = (folder / f"{network}.safetensors" for network in ("coarse", "fine"))
        for name, more in (("a", ["-a", coarse, "--adapter", fine]), ("b", [])):
            done = self.call(*say, "-o", tmp_path / f"{name}.wav", *more)
            assert (done.exit_code, done.output) == (0, "")
        assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "b.wav").read_bytes()
        bark = models.model(CONFIG, adapters={"x": adapter("coarse", "fine", rank=4)})
        speech = bark.generate("hello", adapter="x", seed=5, sampling=Sampling(max_duration_s=0.3))
        np.testing.assert_array_equal(audio.read(tmp_path / "a.wav", 24_000), speech.audio)

    def test_errors_are_one_line(self, folder, tmp_path):
        (tmp_path / "bad.safetensors").write_bytes(b"")
        models.save(tmp_path / "other", CONFIG, seed=1)
        for model, file, words in (
            (folder / "model", tmp_path / "bad.safetensors", "bad.safetensors is cut off"),
            (folder / "model", tmp_path / "none.safetensors", "No such file"),
            (folder / "model", "", "directory"),
            (tmp_path / "other", folder / "fine.safetensors", "'fine.safetensors': trained on another fine network"),
        ):
            done = self.call("say", "-m", model, "-a", file, "-o", tmp_path / "a.wav", "hello")
            assert done.exit_code == 1 and done.output.startswith("Error: ") and done.output.count("\n") == 1
            assert words in done.output
        assert not (tmp_path / "a.wav").exists()

    def test_info_shows_the_bases(self, folder):
        done = self.call("info", "-m", folder / "model")
        assert done.exit_code == 0
        for network in adapters.NETWORKS:
            assert f"base {adapters.base_digest(base(network).module)} of adapters" in done.output
