"""Step 3, the codec: ``python -m recipes.bark_nano.train_codec``. Trains `bark_jax.codec` with `CONFIG`; goes on when
it is started again, and can be stopped at any time.

    crops of speech ─▶ encoder ─▶ residual quantizer ─▶ decoder ─▶ distances, critics

It starts from a filter bank (`first_weights`). Up to three phases: a few hundred steps without the quantizer; with it;
and, where it is asked for, with critics besides. The codebooks are running means of the vectors they stand for
(EnCodec's EMA), codes that nothing falls to are given a vector of the batch, and some rows use a few codebooks only, so
that the first ones carry the most.

``WORK/codec`` holds checkpoints and ``metrics.jsonl``; ``--export`` writes ``WORK/codec/codec.safetensors``, which any
checkpoint folder with this config loads, from the running mean of the weights, in bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import safetensors.numpy
import soundfile
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bark_jax import units, weights
from bark_jax.codec import Codec
from bark_jax.config import CodecConfig
from bark_jax.files import lock, replacing
from bark_jax.units import LogMelUnits
from recipes.bark_nano import corpus, run
from recipes.bark_nano.critic import (
    KINDS,
    LONG,
    Critics,
    audible_distance,
    content_distance,
    copy_losses,
    critic_loss,
    loudness_distance,
    split_loudness_distance,
    wave_distance,
)
from recipes.bark_nano.first_weights import first_weights
from recipes.bark_nano.foretell import N_BOOKS, Foreteller, surprise, unforetold, voice_of

CONFIG = CodecConfig(
    dimension=64,
    n_filters=2,
    ratios=(1, 320),
    widths=(352, 352, 2),
    kernel_size=3,
    last_kernel_size=3,
    residual_layers=(4, 0),
    dilation_base=1,
    lstm_layers=0,
)
"""4.5 million weights, and half a million in the codebooks; EnCodec's has 15 million. All but the outermost layers work
at the frame rate, so there is little to compute for a second of speech, and nearly all of it in large products
(`benchmarks/NOTES.md`, "The codec that works at the frame rate")."""

BOOKS = "quantizer.codebooks"
FORETELLER = "foreteller."
"""What its tensors' names begin with, among those of the codec."""


@dataclass(frozen=True)
class Settings:
    """Of a run; kept with it, and compared when it goes on."""

    batch: int = 16
    seconds: float = 0.96
    """Of a crop."""
    trained: str = "all"
    """"all", or "decoder": encoder and codebooks stay as they are, and with them the codes of all speech (`rows`)."""
    steps: int = 10_000
    quantize_from: int = 300
    critics_from: int = 1 << 40
    """By default never."""
    muon_rate: float = 2e-3
    """Learning rate of the matrices, with Muon (https://kellerjordan.github.io/posts/muon/): its steps are scaled to
    the size of Adam's (arXiv 2502.16982). It learns several times as much in a step (`benchmarks/NOTES.md`)."""
    learning_rate: float = 1e-3
    """Of all else, with Adam."""
    muon_rounds: int = 3
    """Of its Newton-Schulz iteration, preconditioned (arXiv 2512.04632): as good as 4 without."""
    warmup: int = 100
    fall: float = 0.5
    """Share of the steps, at the end, in which the learning rates fall along a cosine; before, they stay."""
    last_rate: float = 0.05
    """Share of the learning rate at the end of it."""
    critic_kind: str = "stft"
    """"stft", or "frames" where 2-D convolutions are slow (`critic.FrameCritic`; then some 256 filters)."""
    critic_rate: float = 2e-4
    critic_windows: tuple[int, ...] = (2048, 1024, 512)
    critic_filters: int = 8
    critic_dtype: str = "float32"
    """Of the critics' products: "bfloat16" is faster on accelerators. The codec itself stays in float32: a code turns
    on the last bits of a vector."""
    loudness: float = 20.0
    audible: float = 30.0
    wave: float = 6.0
    content: float = 0.0
    """Of the distance in what step 2's network hears (`critic.content_distance`), which then must be there."""
    foretold: float = 0.0
    """Of what could not be foretold of the first codes (`foretell`), in nats; step 2's network must be there. Rows with
    few codebooks then are not compared wave by wave, and not in windows of less than 512 samples."""
    commit: float = 0.25
    marks: float = 1.0
    matching: float = 2.0
    all_books: float = 0.8
    """Share of the rows that use all codebooks; half of the others use two, the rest 1 to all but one."""
    decay: float = 0.99
    """Of the running means of the codebooks."""
    average: float = 0.999
    """Of the weights that are exported."""
    real_share: float = 0.5
    """Of the crops: recordings of people."""
    seed: int = 0

    def __post_init__(self) -> None:
        for names, low, high in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if not low <= value <= high:
                    raise ValueError(f"{name} is {value}: it must be {low} to {high}")
        if self.critic_dtype not in CRITIC_DTYPES:
            raise ValueError(f"critic_dtype is {self.critic_dtype!r}: choose one of {', '.join(CRITIC_DTYPES)}")


RANGES = (
    ("batch muon_rounds critic_filters", 1, 1 << 20),
    ("steps quantize_from critics_from warmup seed", 0, 1 << 40),
    ("seconds", 0.01, 60.0),
    ("muon_rate learning_rate critic_rate", 0.0, 1.0),
    ("loudness audible wave content foretold commit marks matching", 0.0, 1e6),
    ("fall last_rate all_books decay average real_share", 0.0, 1.0),
)
"""Of `Settings`."""
CRITIC_DTYPES = ("float32", "bfloat16")


class Books(NamedTuple):
    """Codebooks as running means. Q codebooks, K codes, D numbers."""

    counts: jax.Array
    """(Q, K) vectors that fell to a code in a step."""
    sums: jax.Array
    """(Q, K, D) their sum."""

    @property
    def vectors(self) -> jax.Array:
        return self.sums / self.counts[..., None]


class State(NamedTuple):
    """All that a step changes."""

    params: dict[str, jax.Array]
    """Encoder and decoder, by name."""
    average: dict[str, jax.Array]
    books: Books
    optimizer: Any
    critics: dict[str, jax.Array]
    critic_optimizer: Any


# --- the quantizer in training ----------------------------------------------------------------------------------------


class Quantized(NamedTuple):
    vectors: jax.Array
    """(B, F, D), with the gradient of the unquantized ones."""
    commit: jax.Array
    """Mean squared distance of what each codebook was given to what it gave."""
    counts: jax.Array
    """(Q, K) of this batch."""
    sums: jax.Array
    """(Q, K, D)."""
    left: jax.Array
    """(Q, B · F, D) what each codebook was given."""
    codes: jax.Array
    """(Q, B · F) the nearest."""


def quantize(x: jax.Array, vectors: jax.Array, active: jax.Array) -> Quantized:
    """Residual quantization of x (B, F, D), row b with its first `active[b]` codebooks (Q, K, D)."""
    rows, frames, width = x.shape
    left, total = x, jnp.zeros_like(x)
    commit = jnp.zeros(())
    counts, sums, given, nearest = [], [], [], []
    for i, table in enumerate(vectors):
        flat = lax.stop_gradient(left).reshape(-1, width)
        distance = jnp.sum(jnp.square(table), axis=-1) - 2 * jnp.dot(flat, table.T, precision="highest")
        codes = jnp.argmin(distance, axis=-1)
        on = jnp.repeat(i < active, frames)
        counts.append(jax.ops.segment_sum(on.astype(jnp.float32), codes, table.shape[0]))
        sums.append(jax.ops.segment_sum(flat * on[:, None], codes, table.shape[0]))
        given.append(flat)
        nearest.append(codes)
        near = lax.stop_gradient(table)[codes].reshape(x.shape) * on.reshape(rows, frames, 1)
        commit += jnp.sum(jnp.square(left - near) * on.reshape(rows, frames, 1)) / x.size
        total += near
        left = left - near
    out = x + lax.stop_gradient(total - x)
    return Quantized(out, commit, jnp.stack(counts), jnp.stack(sums), jnp.stack(given), jnp.stack(nearest))


def update(books: Books, seen: Quantized, decay: float, active: jax.Array, key: jax.Array) -> Books:
    """The running means after a batch; a code that is hardly used gets a vector of the batch, of the rows with its
    codebook: those with their first `active` (B,).
    """
    counts = decay * books.counts + (1 - decay) * seen.counts
    sums = decay * books.sums + (1 - decay) * seen.sums
    usual = jnp.mean(counts, axis=1, keepdims=True)
    dead = counts < 0.03 * usual
    frames = seen.left.shape[1] // len(active)
    on = jnp.repeat(jnp.arange(len(counts))[:, None] < active, frames, axis=1)
    n_on = jnp.sum(on, axis=1, keepdims=True)
    dead &= n_on > 0
    some = jax.random.randint(key, counts.shape, 0, jnp.maximum(n_on, 1))
    picks = jnp.take_along_axis(jnp.argsort(~on, axis=1), some, axis=1)  # those that are on come first
    fresh = jnp.take_along_axis(seen.left, picks[..., None], axis=1)
    start = jnp.broadcast_to(0.5 * usual, counts.shape)
    counts = jnp.where(dead, start, counts)
    return Books(jnp.maximum(counts, 1e-6), jnp.where(dead[..., None], fresh * start[..., None], sums))


def first_books(x: np.ndarray, config: CodecConfig, *, rounds: int = 8, seed: int = 0) -> Books:
    """k-means of vectors (N, D), codebook after codebook on what the last left over."""
    rng = np.random.default_rng(seed)
    left, counts, sums = np.array(x, np.float32), [], []
    for _ in range(config.n_codebooks):
        table = left[rng.choice(len(left), config.codebook_size, replace=len(left) < config.codebook_size)].copy()
        for round_ in range(rounds + 1):
            codes = np.argmin(np.sum(table**2, axis=1) - 2 * left @ table.T, axis=1)
            if round_ == rounds:
                break
            n = np.bincount(codes, minlength=len(table))
            total = np.zeros_like(table)
            np.add.at(total, codes, left)
            table = np.where(n[:, None] > 0, total / np.maximum(n, 1)[:, None], table)
        n = np.maximum(np.bincount(codes, minlength=len(table)), 0.5) * (1000 / len(left))
        counts.append(n)
        sums.append(table * n[:, None])
        left = left - table[codes]
    return Books(jnp.asarray(np.stack(counts), jnp.float32), jnp.asarray(np.stack(sums), jnp.float32))


def matrices(tensors: dict[str, Any]) -> dict[str, Any]:
    """Which tensors are matrices to Muon, and how: their axes of inputs and of outputs, None for the others.

    The convolutions next to the waveform are none: with two channels there is little to orthogonalise.
    """
    out: dict[str, Any] = {}
    for name, x in tensors.items():
        inputs, outputs = ((0,), (1, 2)) if name.endswith(".up.weight") else ((0, 1), (2,))
        if getattr(x, "ndim", 0) == 2:
            inputs, outputs = (1,), (0,)  # of an LSTM
        known = name.endswith((".weight", ".weight_ih", ".weight_hh")) and getattr(x, "ndim", 0) > 1
        sides = [np.prod([x.shape[i] for i in axes]) for axes in (inputs, outputs)] if known else [0]
        out[name] = optax.contrib.MuonDimensionNumbers(inputs, outputs) if min(sides) >= 8 else None
    return out


def muon_and_adam(muon_rate: Any, adam_rate: Any, rounds: int) -> optax.GradientTransformation:
    """Muon for `matrices`, its steps of Adam's size; Adam for all else. Rates are numbers or schedules."""
    axes: Any = matrices
    return optax.contrib.muon(
        muon_rate,
        ns_steps=rounds,
        preconditioning="aol",
        beta=0.9,
        consistent_rms=0.2,
        adam_learning_rate=adam_rate,
        adam_b1=0.8,
        adam_b2=0.99,
        muon_weight_dimension_numbers=axes,
    )


# --- a step -----------------------------------------------------------------------------------------------------------


class Trainer:
    """The compiled steps of a run; the rows of a batch are divided over the devices, all else is on each of them.

    Args:
      devices: default: all of this process.
      listener: step 2's network, where the settings give its distance a weight.

    Raises:
      ValueError: a batch that does not divide over the devices, crops that are no whole number of frames, an unknown
        part to train, no listener where its distance has a weight.
    """

    def __init__(
        self,
        settings: Settings,
        config: CodecConfig = CONFIG,
        devices: Sequence[jax.Device] | None = None,
        listener: LogMelUnits | None = None,
    ):
        devices = list(devices or jax.local_devices())
        if settings.batch % len(devices):
            raise ValueError(f"batch is {settings.batch}: it must be a multiple of the {len(devices)} devices")
        if round(settings.seconds * config.sample_rate) % config.hop_length:
            frame = f"{config.hop_length / config.sample_rate:.6g} s"
            raise ValueError(f"seconds is {settings.seconds}: a crop must be a whole number of frames of {frame}")
        if settings.critic_kind not in KINDS:
            raise ValueError(f"critic_kind is {settings.critic_kind!r}: choose one of {', '.join(KINDS)}")
        if settings.trained not in ("all", "decoder"):
            raise ValueError(f"trained is {settings.trained!r}: choose one of all, decoder")
        for name in ("content", "foretold"):
            if getattr(settings, name) and listener is None:
                raise ValueError(
                    f"{name} is {getattr(settings, name)}: it needs a network to listen, and none is given"
                )
        mesh = Mesh(np.array(devices), ("data",))
        self._everywhere, self._rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        self.settings, self.config, self.listener = settings, config, listener
        self.module = nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))
        self.judge = nnx.eval_shape(self._new_critics)
        self.foreteller = nnx.eval_shape(self._new_foreteller) if settings.foretold else None

        def schedule(rate: float) -> optax.Schedule:
            rise, fall = settings.warmup, round(settings.fall * settings.steps)
            first = optax.linear_schedule(0.0, rate, rise) if rise else optax.constant_schedule(rate)
            last = optax.cosine_decay_schedule(rate, max(1, fall), settings.last_rate)
            return optax.join_schedules([first, last], [max(rise, settings.steps - fall)])

        clip = optax.clip_by_global_norm(10.0)
        muon = muon_and_adam(schedule(settings.muon_rate), schedule(settings.learning_rate), settings.muon_rounds)
        self.optimizer = optax.chain(clip, muon)
        self.critic_optimizer = optax.chain(clip, optax.adam(settings.critic_rate, b1=0.8, b2=0.99))
        self._step = jax.jit(
            self._whole_step,
            static_argnames=("quantized", "judged"),
            donate_argnums=0,
            out_shardings=self._everywhere,
        )
        self._encode = jax.jit(lambda params, audio: self._codec(params, None).encoder(audio))

    def _new_critics(self) -> Critics:
        s = self.settings
        rngs = nnx.Rngs(s.seed + 1)
        return Critics(s.critic_windows, s.critic_filters, kind=s.critic_kind, dtype=s.critic_dtype, rngs=rngs)

    def _new_foreteller(self) -> Foreteller:
        known, c = self.listener, self.config
        assert known is not None
        rngs = nnx.Rngs(self.settings.seed + 2)
        return Foreteller(known.config.n_units, c.codebook_size, c.dimension, rngs=rngs)

    def start(self, made: Mapping[str, np.ndarray] | None = None) -> State:
        """A run's beginning: of `first_weights`, or of a codec's tensors by name, its codebooks among them."""
        if made is None:
            tensors = weights.names(Codec(self.config, rngs=nnx.Rngs(self.settings.seed)))
            made = first_weights({name: np.asarray(x) for name, x in tensors.items()}, self.config)
        tensors = {name: jnp.asarray(x, jnp.float32) for name, x in made.items()}
        vectors = tensors.pop(BOOKS)
        if self.foreteller is not None:
            tensors |= {FORETELLER + name: x for name, x in weights.names(self._new_foreteller()).items()}
        critics = weights.names(self._new_critics())
        books = Books(jnp.ones(vectors.shape[:2]), vectors)
        state = State(
            tensors,
            jax.tree.map(jnp.copy, tensors),
            books,
            self.optimizer.init(tensors),
            critics,
            self.critic_optimizer.init(critics),
        )
        return jax.device_put(state, self._everywhere)

    def step(self, state: State, audio: np.ndarray, number: int) -> tuple[State, dict[str, jax.Array]]:
        """One update on audio (B, N)."""
        s = self.settings
        rows = jax.device_put(audio, self._rows)
        return self._step(state, rows, number, quantized=number >= s.quantize_from, judged=number >= s.critics_from)

    def begin_quantizing(self, state: State, batches: Iterator[np.ndarray]) -> State:
        """The state with codebooks made of the encoder's vectors, of some 30 vectors per code."""
        found: list[np.ndarray] = []
        while sum(map(len, found)) < 30 * self.config.codebook_size:
            found.append(np.asarray(self._encode(state.params, next(batches))).reshape(-1, self.config.dimension))
        books = first_books(np.concatenate(found), self.config)
        return state._replace(books=jax.device_put(books, self._everywhere))

    def _codec(self, params: dict[str, jax.Array], vectors: jax.Array | None) -> Any:
        shape = (self.config.n_codebooks, self.config.codebook_size, self.config.dimension)
        params = {name: x for name, x in params.items() if not name.startswith(FORETELLER)}
        return weights.fill(self.module, {**params, BOOKS: jnp.zeros(shape) if vectors is None else vectors})

    def exported(self, state: State) -> dict[str, np.ndarray]:
        """The tensors of ``codec.safetensors``."""
        tensors = {**state.average, BOOKS: state.books.vectors}
        return {name: np.asarray(x, np.float32) for name, x in tensors.items() if not name.startswith(FORETELLER)}

    def _foretell(
        self, params: dict[str, jax.Array], x: jax.Array, audio: jax.Array, seen: Quantized, books: Books
    ) -> tuple[jax.Array, list[jax.Array]]:
        """What the encoder pays for its vectors x (B, F, D), and the nats of each codebook, for the foreteller."""
        assert self.listener is not None and self.foreteller is not None
        units = jnp.argmax(lax.stop_gradient(self.listener(audio)), axis=-1)
        mine = {n.removeprefix(FORETELLER): p for n, p in params.items() if n.startswith(FORETELLER)}
        codes = seen.codes[:N_BOOKS].reshape(N_BOOKS, *x.shape[:2])
        tables = books.vectors[:N_BOOKS]
        first, second = (table[i] for table, i in zip(tables, codes, strict=True))
        voice = voice_of(lax.stop_gradient(x))
        logits = weights.fill(self.foreteller, mine)(units, voice, (first, second))
        cost, nats = jnp.zeros(()), []
        for i, table in enumerate(tables):
            left = x + lax.stop_gradient(seen.left[i].reshape(x.shape) - x)  # a codebook's vectors are no variables
            share = books.counts[i] / jnp.sum(books.counts[i])
            cost += unforetold(left, table, share, logits[i])
            nats.append(surprise(logits[i], codes[i]))
        return cost, nats

    def _whole_step(
        self, state: State, audio: jax.Array, number: jax.Array, *, quantized: bool, judged: bool
    ) -> tuple[State, dict[str, jax.Array]]:
        s = self.settings
        rows, books = len(audio), self.config.n_codebooks
        key = jax.random.fold_in(jax.random.key(s.seed), number)
        few = jax.random.randint(jax.random.fold_in(key, 1), (rows,), 1, books)
        first_two = jax.random.bernoulli(jax.random.fold_in(key, 2), 0.5, (rows,))
        if s.foretold:
            n_whole = max(1, round(s.all_books * rows))
            every = jnp.arange(rows) < n_whole
        else:
            n_whole = rows
            every = jax.random.bernoulli(jax.random.fold_in(key, 3), s.all_books, (rows,))
        active = jnp.where(every, books, jnp.where(first_two, 2, few))
        vectors = state.books.vectors
        whole = s.trained == "all"

        def loss(params: dict[str, jax.Array]) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array, Any]]:
            codec = self._codec(params, None)
            x = codec.encoder(audio)
            x = x if whole else lax.stop_gradient(x)
            seen = quantize(x, vectors, active) if quantized else None
            made = codec.decoder(x if seen is None else seen.vectors)
            rate, share = self.config.sample_rate, n_whole / rows
            loud = share * split_loudness_distance(made[:n_whole], audio[:n_whole], rate)
            if n_whole < rows:
                loud += (1 - share) * loudness_distance(made[n_whole:], audio[n_whole:], rate, LONG)
            parts = {
                "loudness": s.loudness * loud,
                "audible": s.audible * audible_distance(made, audio, rate),
                "wave": s.wave * share * wave_distance(made[:n_whole], audio[:n_whole]),
            }
            if self.listener is not None and s.content:
                parts["content"] = s.content * content_distance(self.listener, made, audio)
            if seen is not None and whole:
                parts["commit"] = s.commit * seen.commit
            known = []
            if self.foreteller is not None and seen is not None:
                cost, known = self._foretell(params, x, audio, seen, state.books)
                parts |= {"foretold": s.foretold * cost, "nats": sum(known, jnp.zeros(()))}
            if judged:
                critics = weights.fill(self.judge, state.critics)
                marks, matching = copy_losses(critics, audio, made)
                parts |= {"marks": s.marks * marks, "matching": s.matching * matching}
            kept = None if seen is None else seen._replace(vectors=jnp.zeros(()), commit=jnp.zeros(()))
            each = {f"nats_{i}": x for i, x in enumerate(known)}
            return sum(parts.values(), start=jnp.zeros(())), (parts | each, made, kept)

        (total, (parts, made, seen)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        if not whole:
            changes: Any = updates
            updates = {n: x if n.startswith("decoder.") else jnp.zeros_like(x) for n, x in changes.items()}
        params: Any = optax.apply_updates(state.params, updates)
        # In this form a tensor that is not trained stays as it is to the bit.
        new = jnp.maximum(1 - s.average, 1 / (number + 1))  # at first a plain mean: of no weights that were begun with
        average = jax.tree.map(lambda a, b: a + new * (b - a), state.average, params)
        after = state._replace(params=params, average=average, optimizer=optimizer)
        metrics = {"loss": total, **parts, "norm": optax.tree.norm(gradient)}
        if seen is not None and whole:
            after = after._replace(books=update(state.books, seen, s.decay, active, jax.random.fold_in(key, 4)))
            share = state.books.counts / jnp.sum(state.books.counts, axis=1, keepdims=True)
            entropy = -jnp.sum(share * jnp.log(share + 1e-10), axis=1)
            metrics["perplexity"] = jnp.exp(jnp.min(entropy))
        if judged:
            critic, gradient = jax.value_and_grad(
                lambda x: critic_loss(weights.fill(self.judge, x), audio, lax.stop_gradient(made))
            )(state.critics)
            updates, optimizer = self.critic_optimizer.update(gradient, state.critic_optimizer, state.critics)
            better: Any = optax.apply_updates(state.critics, updates)
            after = after._replace(critics=better, critic_optimizer=optimizer)
            metrics["critic"] = critic
        return after, metrics


# --- data -------------------------------------------------------------------------------------------------------------


class Crops:
    """Random crops of files: batch number n is a function of n, the seed and the files.

    All of it is kept in memory as 16 bits, 170 MB an hour: opening files would take as long as a fifth of a step.

    Args:
      synthetic: files at the codec's rate, in one folder for each voice; all voices are drawn as often.
      real: the same of recordings; all files are drawn as often.
    """

    def __init__(self, synthetic: Sequence[Path], real: Sequence[Path], settings: Settings, rate: int):
        """Raises `ValueError` if there are no files, or one is not mono or of another rate."""
        if not synthetic and not real:
            raise ValueError("there is nothing to train on: make the corpus first")
        self.settings = settings
        voices: dict[Path, list[np.ndarray]] = {}
        for path in synthetic:
            voices.setdefault(path.parent, []).append(samples(path, rate))
        self.synthetic = list(voices.values())
        self.real = [[samples(path, rate)] for path in real]
        self.size = round(settings.seconds * rate)

    def __getitem__(self, number: int) -> np.ndarray:
        """(batch, samples) float32."""
        rng = np.random.default_rng([self.settings.seed, number])
        return np.stack([self._crop(rng) for _ in range(self.settings.batch)])

    def ahead(self, start: int) -> Iterator[np.ndarray]:
        """Batches from `start` on, prepared in a thread."""
        waiting: queue.Queue[np.ndarray | Exception] = queue.Queue(4)
        done = threading.Event()

        def work() -> None:
            number = start
            while not done.is_set():
                try:
                    batch: np.ndarray | Exception = self[number]
                except Exception as error:  # whoever waits must not wait for ever
                    batch = error
                number += 1
                while not done.is_set():
                    try:
                        waiting.put(batch, timeout=1)
                        break
                    except queue.Full:
                        continue

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                batch = waiting.get()
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            done.set()

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        real = bool(self.real) and (not self.synthetic or rng.random() < self.settings.real_share)
        groups = self.real if real else self.synthetic
        for _ in range(20):
            group = groups[int(rng.integers(len(groups)))]
            clip = group[int(rng.integers(len(group)))]
            start = int(rng.integers(max(1, len(clip) - self.size + 1)))
            audio = clip[start : start + self.size].astype(np.float32) / 32768
            if float(np.sqrt(np.mean(np.square(audio)))) > 0.005:  # not a pause
                break
        audio = np.pad(audio, (0, self.size - len(audio)))
        level = float(np.max(np.abs(audio)))
        wanted = float(10 ** rng.uniform(-0.6, -0.02))  # peaks of 0.25 to 0.95: quiet speech must survive as well
        return (audio * (wanted / max(level, 1e-3))).astype(np.float32)


def samples(path: Path, rate: int) -> np.ndarray:
    """A file's samples (N,) int16.

    Raises:
      ValueError: it is not mono, or of another rate: what it sounds like would be learnt wrong.
    """
    audio, found = soundfile.read(path, dtype="int16", always_2d=True)
    if found != rate or audio.shape[1] != 1:
        raise ValueError(f"{path} has {audio.shape[1]} channels at {found} Hz: it must be mono at {rate}")
    return audio[:, 0]


# --- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """Checkpoints and metrics of a run, for one process at a time.

    Raises:
      FileExistsError: another process has it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder / ".lock", FileExistsError(f"another run is at work in {folder}: end it first"))
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(folder.absolute() / "checkpoints", options=options)

    def remember(self, settings: Settings) -> None:
        """Keep the settings, and say so if they are not those of before."""
        if settings_path(self.folder).is_file() and (before := kept_settings(self.folder)) != settings:
            if different := [name for name in OF_THE_STATE if getattr(before, name) != getattr(settings, name)]:
                name, values = different[0], (getattr(before, different[0]), getattr(settings, different[0]))
                raise ValueError(
                    f"{name} is {values[1]}, and was {values[0]} in the run of {self.folder}: its state would not fit"
                )
            if bool(before.foretold) != bool(settings.foretold):
                raise ValueError(
                    f"foretold is {settings.foretold}, and was {before.foretold} in the run of {self.folder}: it may"
                    " change, but not from or to 0"
                )
            print(
                f"note: the settings in {self.folder} differ from those of this call, which count from here on",
                flush=True,
            )
        with replacing(settings_path(self.folder)) as part:
            part.write_text(json.dumps(dataclasses.asdict(settings), indent=2), "utf-8")

    def restore(self, state: State) -> tuple[int, State]:
        """Step and state to go on with: those of the newest checkpoint, or the given ones."""
        latest = self.manager.latest_step()
        if latest is None:
            return 0, state
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        found: Any = self.manager.restore(latest, args=ocp.args.StandardRestore(abstract))
        return latest, found

    def save(self, step: int, state: State) -> None:
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def log(self, **values: float) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


OF_THE_STATE = ("critic_kind", "critic_filters", "critic_windows", "muon_rounds")
"""Settings that a run cannot change: what is kept of it depends on them."""


def settings_path(folder: Path) -> Path:
    return folder / "settings.json"


def kept_settings(folder: Path) -> Settings:
    """Of the run in a folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: they are not what a run writes.
    """
    path = settings_path(folder)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no checkpoint: train first, without --export")
    try:
        tree = json.loads(path.read_text("utf-8"))
        given: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in tree.items()}
        return Settings(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def read_codec(path: Path, config: CodecConfig = CONFIG) -> dict[str, np.ndarray]:
    """The tensors of a ``codec.safetensors``, float32.

    Raises:
      CheckpointError: it is damaged, or of another kind.
    """
    return weights.read_module(path, nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0))))


def digest(codec: Path) -> str:
    """SHA-256 of what a codec's codes depend on: its encoder and codebooks. Another decoder changes no code."""
    tensors = safetensors.numpy.load_file(codec)
    found = hashlib.sha256()
    for name in sorted(tensors):
        if not name.startswith("decoder."):
            found.update(name.encode())
            found.update(np.ascontiguousarray(tensors[name]).tobytes())
    return found.hexdigest()


def files(work: Path) -> tuple[list[Path], list[Path]]:
    """Synthetic and real files to train on."""
    said = [clip for clip in corpus.read_plan(work) if clip.split == "train"]
    synthetic = [path for clip in said if (path := corpus.audio_path(work, clip.id)).is_file()]
    return synthetic, sorted(corpus.recorded(work, "train").glob("*.flac"))


def listener_of(work: Path, settings: Settings) -> LogMelUnits | None:
    """Step 2's network, where the settings need it.

    Raises:
      ValueError: the folder has another kind of network.
    """
    if not settings.content and not settings.foretold:
        return None
    network = units.load(work / "units" / "units.safetensors")
    if not isinstance(network, LogMelUnits):
        raise ValueError(
            f"{work / 'units'} has a network that reads no log mel spectra: the codec is judged by bark-nano's"
        )
    return network


def train(
    work: Path, settings: Settings, *, minutes: float, save_minutes: float, log_every: int, begin: Path | None = None
) -> None:
    """Train until the settings' steps are made or the time is over.

    Args:
      begin: a ``codec.safetensors`` that a new run starts from, codebooks included; where a run goes on, it is not
        read.

    Raises:
      ValueError: a decoder is to be trained alone, and no codec is given to begin with; the loss is no number any more.
      FileExistsError: another process trains there.
    """
    if settings.trained == "decoder" and begin is None:
        raise ValueError("trained is 'decoder': it needs a codec whose encoder and codebooks it keeps, --begin FILE")
    if begin is not None:
        settings = dataclasses.replace(settings, quantize_from=0)
    trainer = Trainer(settings, listener=listener_of(work, settings))
    made = None if begin is None else read_codec(begin, trainer.config)
    kept = Run(work / "codec")
    kept.remember(settings)
    crops = Crops(*files(work), settings, trainer.config.sample_rate)
    step, state = kept.restore(trainer.start(made))
    if step and begin is not None:
        print(f"note: the run in {kept.folder} goes on; {begin} was for its beginning", flush=True)
    print(f"step {step:,}; {len(crops.synthetic):,} voices, {len(crops.real):,} recordings", flush=True)
    began = saved = logged = time.monotonic()
    last = step
    for audio in crops.ahead(step):
        if step >= settings.steps:
            break
        if step == settings.quantize_from and made is None:
            state = trainer.begin_quantizing(state, crops.ahead(1 << 40))
        state, metrics = trainer.step(state, audio, step)
        step += 1
        now = time.monotonic()
        over = now - began > 60 * minutes
        saving = over or now - saved > 60 * save_minutes or step == settings.steps
        if saving or step % log_every == 0:
            values = {name: round(float(value), 5) for name, value in metrics.items()}
            if not np.isfinite([values["loss"], values["norm"]]).all():
                raise ValueError(
                    f"at step {step} the loss is {values['loss']} and its gradient's norm {values['norm']}: begin anew"
                    " with lower rates, or go on from the last checkpoint, which is from before"
                )
            if step % log_every == 0:
                kept.log(step=step, seconds=round((now - logged) / (step - last), 3), **values)
                print(step, values, f"{(now - logged) / (step - last):.2f} s a step", flush=True)
                logged, last = now, step
        if saving:
            kept.save(step, state)
            saved = now
        if over:
            break


def export(work: Path) -> Path:
    """Write the newest checkpoint's codec.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: its weights are no numbers any more.
    """
    settings = kept_settings(work / "codec")
    trainer = Trainer(settings, listener=listener_of(work, settings))
    step, state = Run(work / "codec").restore(trainer.start())
    if not step:
        raise FileNotFoundError(f"{work / 'codec'} has no checkpoint: train first, without --export")
    path, found = work / "codec" / "codec.safetensors", trainer.exported(state)
    if broken := [name for name, x in found.items() if not np.isfinite(x).all()]:
        raise ValueError(f"step {step} has NaN or infinity in {', '.join(broken[:3])}: nothing is written")
    with replacing(path) as part:
        half = {name: x.astype(weights.DTYPES["bfloat16"]) for name, x in found.items()}
        part.write_bytes(weights.serialized(half, {"step": str(step)}))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.train_codec", description="Train the codec.")
    parser.add_argument("--work", type=Path, default=corpus.WORK)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time, with a checkpoint")
    parser.add_argument("--save-minutes", type=float, default=10.0)
    parser.add_argument("--begin", type=Path, help="a codec.safetensors that a new run starts from")
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--export", action="store_true", help="train nothing, write codec.safetensors of the run")
    for field in dataclasses.fields(Settings):
        if isinstance(field.default, int | float | str):
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args(argv)
    if options.log_every < 1:
        parser.error(f"--log-every is {options.log_every}: it must be 1 or more")
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings) if hasattr(options, f.name)}
    if options.export:
        return run(lambda: print(export(options.work)))
    return run(
        lambda: train(
            options.work,
            Settings(**given),
            minutes=options.minutes,
            save_minutes=options.save_minutes,
            log_every=options.log_every,
            begin=options.begin,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
