"""`kernels` and `native`: the code for CPUs equals XLA's, is found or left out as it should be, and breaks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from bark_jax import attention, compilation, kernels, linear, native
from bark_jax.attention import MASKED
from bark_jax.config import GPTConfig
from bark_jax.gpt import CausalGPT, KVCache
from bark_jax.linear import Int8

VARIANTS = tuple(native.VARIANTS)


def compiled(variant: str) -> str:
    """Make the kernels of an instruction set known to XLA under names of their own; their prefix."""
    prefix = f"test_{variant}_"
    try:
        native._variant(variant)
        native._compiler()
    except native._Missing as missing:
        pytest.skip(f"no kernels for {variant} here: {missing}")
    if prefix not in _KNOWN:
        library = native._library(variant)
        for name in kernels.NAMES:
            capsule = jax.ffi.pycapsule(getattr(library, f"bark_jax_{name}"))
            jax.ffi.register_ffi_target(prefix + name, capsule, platform="cpu")
        _KNOWN.add(prefix)
    return prefix


_KNOWN: set[str] = set()


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """In this test the kernels of one instruction set are in use, and traces made with others are not.

    Of the module, so that all tests of one follow each other: each change makes JAX forget what it has compiled.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "PREFIX", compiled(request.param))
        found: Future[str | None] = Future()
        found.set_result(request.param)
        patch.setattr(kernels, "_expected", found)
        jax.clear_caches()
        yield request.param
    jax.clear_caches()


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def weight(seed: int, *shape: int) -> Int8:
    return jax.tree.map(jnp.asarray, Int8.of(np.asarray(numbers(seed, *shape))))


class TestProduct:
    @pytest.mark.parametrize("rows", [1, 3, 6, 8, 9, 33, 200])
    @pytest.mark.parametrize(("outputs", "width"), [(64, 64), (101, 160), (7, 1), (1, 770)])
    def test_equals_xla_bit_for_bit(self, variant, rows, outputs, width):
        x, w = numbers(rows, rows, width), weight(width, outputs, width)
        ours = jax.jit(kernels.product)(x, w.values, w.scale)
        theirs = jax.jit(linear._int8_product)(x, w.values, w.scale)
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)

    def test_of_suno_s_sizes(self, variant):
        for rows, width, outputs in [(1, 768, 2304), (1, 3072, 768), (6, 768, 3072), (257, 768, 768)]:
            x, w = numbers(rows, rows, width), weight(width, outputs, width)
            np.testing.assert_array_equal(
                jax.jit(kernels.product)(x, w.values, w.scale), jax.jit(linear._int8_product)(x, w.values, w.scale)
            )

    def test_extremes(self, variant):
        """The largest sums there can be, rows of zeros, and numbers at the border of the smallest."""
        w = Int8(jnp.full((5, 3072), -127, jnp.int8), jnp.ones(5))
        x = jnp.stack([jnp.full(3072, 1.0), jnp.full(3072, -1.0), jnp.zeros(3072), jnp.full(3072, 1e-30)])
        ours = kernels.product(x, w.values, w.scale)
        np.testing.assert_array_equal(ours, jax.jit(linear._int8_product)(x, w.values, w.scale))
        assert float(ours[0, 0]) == pytest.approx(-127 * 3072)
        assert not np.any(ours[2])

    def test_what_is_not_a_number_stays_so(self, variant):
        w = weight(0, 6, 64)
        x = numbers(1, 3, 64).at[0, 5].set(jnp.nan).at[1, 63].set(jnp.inf)
        for y in (kernels.product(x, w.values, w.scale), linear._int8_product(x, w.values, w.scale)):
            assert np.isnan(y[0]).all()
            assert not np.isfinite(y[1]).any()
            assert np.isfinite(y[2]).all()

    def test_a_row_does_not_depend_on_the_others(self, variant):
        x, w = numbers(1, 21, 160), weight(2, 50, 160)
        whole = kernels.product(x, w.values, w.scale)
        for some in (slice(0, 1), slice(3, 8), slice(0, 8), slice(4, 21)):
            np.testing.assert_array_equal(whole[some], kernels.product(x[some], w.values, w.scale))

    def test_from_many_threads(self, variant):
        call = jax.jit(kernels.product)
        xs = [numbers(i, 1 + i % 9, 256) for i in range(24)]
        w = weight(3, 300, 256)
        alone = [call(x, w.values, w.scale) for x in xs]
        with ThreadPoolExecutor(6) as pool:
            for _ in range(5):
                for ours, theirs in zip(alone, pool.map(lambda x: call(x, w.values, w.scale), xs), strict=True):
                    np.testing.assert_array_equal(ours, theirs)

    @pytest.mark.parametrize(("width", "scales"), [(32, 4), (64, 3), (0, 4)])
    def test_shapes_that_do_not_fit_are_refused(self, variant, width, scales):
        x = numbers(0, 2, 0 if width == 0 else 64)
        with pytest.raises(Exception, match="do not fit"):
            jax.block_until_ready(kernels.product(x, jnp.zeros((4, width), jnp.int8), jnp.ones(scales)))

    def test_one_of_many_by_vmap(self, variant):
        x, w = numbers(0, 3, 2, 64), weight(1, 10, 64)
        mapped = jax.vmap(lambda x: kernels.product(x, w.values, w.scale))(x)
        np.testing.assert_array_equal(mapped, jnp.stack([kernels.product(one, w.values, w.scale) for one in x]))


class TestFew:
    @pytest.mark.parametrize("rows", [1, 2, 5, 8])
    @pytest.mark.parametrize(("outputs", "width"), [(64, 64), (101, 160), (7, 1), (1, 770), (500, 768)])
    def test_is_the_product(self, variant, rows, outputs, width):
        x, w = numbers(rows, rows, width), numbers(width, outputs, width)
        exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
        np.testing.assert_allclose(jax.jit(kernels.few)(x, w), exact, atol=3e-6 * width**0.5)

    def test_a_row_does_not_depend_on_the_others(self, variant):
        x, w = numbers(1, 8, 200), numbers(2, 50, 200)
        whole = kernels.few(x, w)
        for some in (slice(0, 1), slice(3, 5), slice(1, 8)):
            np.testing.assert_array_equal(whole[some], kernels.few(x[some], w))

    def test_what_is_not_a_number_stays_so(self, variant):
        y = kernels.few(numbers(0, 2, 40).at[0, 39].set(jnp.nan), numbers(1, 9, 40))
        assert np.isnan(y[0]).all()
        assert np.isfinite(y[1]).all()

    def test_shapes_that_do_not_fit_are_refused(self, variant):
        with pytest.raises(Exception, match="do not fit"):
            jax.block_until_ready(kernels.few(numbers(0, 2, 64), numbers(1, 4, 63)))

    def test_is_for_steps_alone(self, variant):
        """What has an axis of positions is XLA's: streamed pieces must equal the whole, whatever their length."""

        def lowered(*shape: int) -> str:
            return jax.jit(linear.matmul).lower(jnp.zeros(shape), jnp.zeros((3, 64))).as_text()

        assert "few" in lowered(2, 64)
        assert "few" not in lowered(1, 2, 64)
        assert "few" not in lowered(9, 64)

    def test_gradients_are_xla_s(self, variant):
        x, w = numbers(0, 2, 64), numbers(1, 5, 64)
        dx, dw = jax.grad(lambda x, w: linear.matmul(x, w).sum(), argnums=(0, 1))(x, w)
        np.testing.assert_allclose(dx, jnp.broadcast_to(w.sum(0), x.shape), atol=1e-5)
        np.testing.assert_allclose(dw, jnp.broadcast_to(x.sum(0), w.shape), atol=1e-5)


class TestAttend:
    @staticmethod
    def exact(q, keys, values, bias):
        q, keys, values = (np.asarray(x, np.float64) for x in (q, keys, values))
        scores = np.einsum("nk,nsk->ns", q, keys) * q.shape[-1] ** -0.5
        scores += np.repeat(np.asarray(bias, np.float64), len(q) // len(bias), axis=0)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.einsum("ns,nsk->nk", p / p.sum(axis=-1, keepdims=True), values)

    @pytest.mark.parametrize(
        ("rows", "heads", "slots", "size"),
        [(1, 12, 1024, 64), (3, 5, 947, 32), (2, 3, 13, 16), (1, 1, 1, 64), (2, 2, 33, 256)],
    )
    def test_equals_the_formula(self, variant, rows, heads, slots, size):
        q, keys, values = (
            numbers(i, rows * heads, *shape) for i, shape in enumerate([(size,), (slots, size), (slots, size)])
        )
        seen = np.random.default_rng(4).random((rows, slots)) < 0.6
        seen[:, slots // 3 : slots // 2] = False
        seen[:, 0] = True
        bias = jnp.where(seen, 0.0, MASKED).astype(jnp.float32)
        ours = jax.jit(kernels.attend)(3 * q, keys, values, bias)
        np.testing.assert_allclose(ours, self.exact(3 * q, keys, values, bias), atol=3e-6)
        np.testing.assert_allclose(ours, attention._all_slots(3 * q, keys, values, bias), atol=3e-6)

    def test_scores_far_apart(self, variant):
        """Weights that are too small for float32 are zeros, and the largest score may be anything."""
        keys = numbers(0, 1, 64, 16)
        q = 1e4 * numbers(1, 1, 16)
        bias = jnp.zeros((1, 64))
        np.testing.assert_allclose(
            kernels.attend(q, keys, keys, bias), self.exact(q, keys, keys, bias), atol=1e-5, rtol=1e-5
        )

    def test_unseen_slots_do_not_count(self, variant):
        """Not even their weight: what is written there has no part in the result."""
        q, keys, values = numbers(0, 2, 64), numbers(1, 2, 100, 64), numbers(2, 2, 100, 64)
        bias = jnp.where(jnp.arange(100)[None] < 41, 0.0, MASKED)
        other = kernels.attend(q, keys.at[:, 41:].set(9e3), values.at[:, 41:].set(-1e9), bias)
        np.testing.assert_array_equal(other, kernels.attend(q, keys, values, bias))

    def test_a_row_that_sees_nothing_gives_numbers(self, variant):
        y = kernels.attend(numbers(0, 4, 64), numbers(1, 4, 48, 64), numbers(2, 4, 48, 64), jnp.full((2, 48), MASKED))
        assert np.isfinite(y).all()

    @pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
    def test_what_is_not_a_number_stays_so(self, variant, bad):
        q, keys = numbers(0, 2, 32), numbers(1, 2, 40, 32)
        for x, y in ((q.at[0, 3].set(bad), keys), (q, keys.at[0, 7, 3].set(bad)), (q, keys.at[0, 39].set(bad))):
            out = kernels.attend(x, y, keys, jnp.zeros((1, 40)))
            assert not np.isfinite(out[0]).any()
            assert np.isfinite(out[1]).all()

    @pytest.mark.parametrize("shapes", [((4, 64), (8, 32, 64)), ((8, 32), (8, 32, 64)), ((8, 64), (7, 32, 64))])
    def test_shapes_that_do_not_fit_are_refused(self, variant, shapes):
        q, keys = (numbers(0, *shape) for shape in shapes)
        with pytest.raises(Exception, match="do not fit"):
            jax.block_until_ready(kernels.attend(q, keys, keys, jnp.zeros((2, 32))))

    def test_the_row_count_does_not_matter(self, variant):
        q, keys, values = numbers(0, 12, 32), numbers(1, 12, 70, 32), numbers(2, 12, 70, 32)
        bias = jnp.where(jnp.arange(70)[None] < jnp.array([[70], [20], [45]]), 0.0, MASKED)
        whole = kernels.attend(q, keys, values, bias)
        for i in range(3):
            mine = slice(4 * i, 4 * i + 4)
            np.testing.assert_array_equal(
                whole[mine], kernels.attend(q[mine], keys[mine], values[mine], bias[i : i + 1])
            )

    def test_only_caches_that_it_knows(self, variant):
        assert kernels.attends(jax.ShapeDtypeStruct((2, 8, 64), jnp.float32))
        assert not kernels.attends(jax.ShapeDtypeStruct((2, 8, 64), jnp.bfloat16))
        assert not kernels.attends(jax.ShapeDtypeStruct((2, 8, 20), jnp.float32))


class TestNetwork:
    CONFIG = GPTConfig(
        n_layer=3, n_head=2, n_embd=64, input_vocab_size=40, output_vocab_size=40, block_size=64, bias=False
    )

    def network(self, low: bool) -> CausalGPT:
        network = CausalGPT(self.CONFIG, rngs=nnx.Rngs(0))
        if low:
            for block in network.blocks:
                for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                    part.weight = nnx.Param(weight(1, *part.weight[...].shape))
        return network

    @staticmethod
    def steps(network: CausalGPT, n: int) -> np.ndarray:
        def step(cache, t):
            seen = jnp.broadcast_to(jnp.arange(64) <= t, (2, 64))
            token, position = jnp.full((2,), 3, jnp.int32) + t, jnp.full((2,), t)
            cache, hidden = network.decode_step(cache, token, position, t, seen)
            return cache, network.logits(hidden)

        cache = KVCache.zeros(network.config, 2, 64)
        return np.asarray(jax.jit(lambda cache: jax.lax.scan(step, cache, jnp.arange(n))[1])(cache))

    @pytest.mark.parametrize("low", [False, True])
    def test_logits_are_those_of_xla(self, variant, monkeypatch, low):
        network = self.network(low)
        ours = self.steps(network, 20)
        monkeypatch.setattr(kernels, "_expected", None)
        np.testing.assert_allclose(ours, self.steps(network, 20), atol=1e-4 if low else 1e-5)

    def test_no_cache_is_copied(self, variant):
        network = self.network(True)

        def run(cache):
            def step(cache, t):
                seen = jnp.broadcast_to(jnp.arange(64) <= t, (2, 64))
                return network.decode_step(cache, jnp.zeros(2, jnp.int32), jnp.full((2,), t), t, seen)

            return jax.lax.scan(step, cache, jnp.arange(8))

        cache = KVCache.zeros(self.CONFIG, 2, 64)
        text = jax.jit(run, donate_argnums=0).lower(cache).compile().as_text()
        assert "attend" in text
        models.check_copies(text, cache.keys[0].shape, self.CONFIG.n_layer)


class TestNative:
    def test_features_are_read(self):
        text = "processor\t: 0\nflags\t\t: fpu avx2 fma avx512f avx512_vnni\n\nprocessor\t: 1\nflags\t\t: none\n"
        assert native._features(text) == {"fpu", "avx2", "fma", "avx512f", "avx512vnni"}
        assert native._features("no such line") == set()

    def test_a_wrong_wish_is_named(self):
        with pytest.raises(ValueError, match="'sse9': choose one of 0, avx512vnni, avx2"):
            native._variant("sse9")

    def test_without_a_compiler_there_are_none(self, monkeypatch):
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(native._Missing, match="no C\\+\\+ compiler"):
            native._compiler()

    def test_a_folder_of_others_is_refused(self, monkeypatch, tmp_path):
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        (home / "native").mkdir()
        (home / "native").chmod(0o777)
        monkeypatch.setenv("BARK_JAX_HOME", str(home))
        with pytest.raises(PermissionError, match="written to by others"):
            native._library("avx2")
        assert compilation.private("other").stat().st_mode & 0o777 == 0o700

    def test_a_damaged_library_is_made_again(self, monkeypatch, tmp_path, _kernels_possible):
        monkeypatch.setenv("BARK_JAX_HOME", str(tmp_path / "home"))
        native._library("avx2")
        (path,) = (tmp_path / "home" / "native").iterdir()
        size = path.stat().st_size
        path.unlink()  # not written over: this process has it mapped
        path.write_bytes(b"")
        native._library("avx2")
        assert path.stat().st_size == size
        assert list(path.parent.iterdir()) == [path]

    def test_who_waits_is_told_before_a_warning_is_raised(self, monkeypatch):
        def fails() -> str:
            raise OSError("no space")

        monkeypatch.setattr(native, "_ready", fails)
        monkeypatch.setattr(native, "_why_not", "")
        future: Future[str | None] = Future()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(native.BarkWarning, match="no space"):
                native._resolve(future)
        assert future.result(timeout=1) is None
        assert native._why_not == "OSError: no space"

    @staticmethod
    def process(home: Path, **environment: str) -> list[str]:
        """A process that says something with both weights: its lines, standard error among them."""
        program = """
            import bark_jax, hashlib, numpy as np
            from bark_jax import native
            whole, low = (bark_jax.load(dtype=dtype) for dtype in ("float32", "int8"))
            said = whole.text_to_semantic("Good morning to you all.", seed=1)
            print("said", hashlib.sha256(np.asarray(said).tobytes()).hexdigest()[:8], len(said))
            print("low", len(low.text_to_semantic("Good morning.", seed=1)) > 9)
            print("kernels", native.status())
        """
        kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "BARK_JAX_NATIVE")}
        environment = {**kept, "BARK_JAX_HOME": str(home), "JAX_ENABLE_COMPILATION_CACHE": "0"} | environment
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return [*done.stdout.splitlines(), *done.stderr.splitlines()]

    @pytest.mark.usefixtures("_kernels_possible")
    def test_left_out_or_not_to_be_had_everything_works(self, tmp_path):
        """In float32 the same is said; a compiler that fails is told of."""
        made, out, broken = (
            self.process(tmp_path, BARK_JAX_NATIVE="avx2"),
            self.process(tmp_path, BARK_JAX_NATIVE="0"),
            self.process(tmp_path / "new", CXX="false"),
        )
        assert made[2] == "kernels compiled for avx2"
        assert out[2] == "kernels none (BARK_JAX_NATIVE is 0)"
        assert broken[2].startswith("kernels none (OSError: false failed")
        assert any("BarkWarning: The kernels for this CPU could not be made" in line for line in broken)
        assert made[:2] == out[:2] == broken[:2]
        assert made[1] == "low True"
        assert len(list((tmp_path / "native").iterdir())) == 1, "nothing half-made is left"
        assert not list((tmp_path / "new" / "native").iterdir())

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing to fork")
    def test_a_child_of_a_fork_does_not_wait_for_its_parent(self):
        program = """
            import os, threading
            from concurrent.futures import Future
            from bark_jax import kernels, native
            native._begun = Future()  # as while it compiles
            kernels.expect(native._begun)
            child = os.fork()
            if child == 0:
                os._exit(0 if kernels.variant() is None and native._begun is None else 1)
            print("child", os.waitpid(child, 0)[1])
            native._begun.set_result(None)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "child 0", done.stderr

    @pytest.fixture
    def _kernels_possible(self) -> None:
        compiled("avx2")
