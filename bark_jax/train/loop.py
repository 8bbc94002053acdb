"""Training one network: `train` takes a `TrainConfig` and leaves a run folder with the product in it.

    settings, rows, weights ─ prepare: everything is checked ─▶ Trainer ─ step, step, evaluate, save, … ─▶ product

`make_step` and `make_evaluate` are the compiled functions, pure. `Trainer` holds the arrays they work on, and is what a
benchmark times. `train` adds data, files, signals and decisions: when to evaluate, to save, to stop, what is the best.

A run that was killed and started again continues as if it had never stopped: a batch depends on the seed and the step
alone, the noise of dropout too, and weights, optimizer and the state of the decisions are in each checkpoint. On CPUs
the results are the same to the bit.

Knows networks by their tensors' names; layouts of examples are `examples`, rows and batches are `data` and `batches`,
the loss is `loss`, adapters are `lora`, the folder is `runs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import importlib.util
import json
import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bark_jax import adapters, library, text, weights
from bark_jax.config import BarkConfig, ConfigError
from bark_jax.hub import STAGES
from bark_jax.linear import Dropout
from bark_jax.train import data, lora, loss
from bark_jax.train.batches import Batches, Validation
from bark_jax.train.config import TrainConfig
from bark_jax.train.examples import Batch, Options
from bark_jax.train.runs import Run, write_tensors

Tensors = dict[str, jax.Array]


class TrainingError(ValueError):
    """A loss or a gradient that is not finite; the message names the step and the rows."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      folder: the run's folder.
      product: the trained file in it.
      step: updates that were made.
      best_step: the step the product is from.
      validation_loss: of the product, in nats per target; None without validation rows.
      reason: "steps" (all were made) or "patience".
    """

    folder: Path
    product: Path
    step: int
    best_step: int
    validation_loss: float | None
    reason: str


# --- the compiled functions -------------------------------------------------------------------------------------------


class Metrics(NamedTuple):
    """What a step reports, still on the device."""

    loss: jax.Array
    """() float32, nats per target before the update."""
    tokens: jax.Array
    """() int32, targets of the batch."""
    grad_norm: jax.Array
    """() float32, before clipping."""
    nll: jax.Array
    """(B,) float32, each row's sum."""
    lost: jax.Array
    """() float32, `loss.lost` per target; 0 without alignment."""


class Now(NamedTuple):
    """What a step is told: values, so that another seed, rate or step runs the same program."""

    key: jax.Array
    """A `jax.random.key`, the run's."""
    step: Any
    """() int32, updates made before this one."""
    learning_rate: Any
    """() float32."""
    clip: Any
    """() float32, largest norm of the gradient."""


@dataclass(frozen=True)
class Recipe:
    """What the compiled functions are made for: a stage, a network, and how to compute.

    Attributes:
      network: the module without memory (`weights.abstract`, or with adapters), whose names the tensors have.
      dtype: of the computation, "float32" or "bfloat16".
      mesh: one axis "data"; rows are divided over it, and everything else is on each of its devices.
      vectors: of the fine stage, what `loss.smoothed` takes; None: no smoothing.
    """

    stage: str
    model: BarkConfig
    network: nnx.Module
    mesh: Mesh
    dtype: str = "float32"
    remat: str = "none"
    dropout: float = 0.0
    adapter_dropout: float = 0.0
    coarse_own: float = 0.0
    guidance: float = 1.0
    sharpness: float = 1.0
    alignment: float = 0.0
    vectors: Any = field(default=None, compare=False)

    def loss(
        self, params: Tensors, frozen: Tensors, batch: Batch, dropout: Dropout | None, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Per-row sums of the negative log-likelihood, counts of targets, and sums of what is `loss.lost` in training.

        Args:
          key: of a step; None: it is none.
        """
        tensors = {name: leaf.astype(self.dtype_of(name, leaf.shape)) for name, leaf in {**frozen, **params}.items()}
        network = weights.fill(self.network, tensors)
        if self.coarse_own > 0 and key is not None:
            batch = loss.own_codes(self.model.coarse, network, batch, self.coarse_own, key)
        inputs: list[jax.Array] | None = [] if self.alignment > 0 and key is not None else None
        how: dict[str, Any] = {"dropout": dropout, "remat": self.remat, "vectors": self.vectors}
        how |= {"guidance": self.guidance, "sharpness": self.sharpness}
        nll, counts = loss.nll(self.stage, self.model, network, batch, inputs=inputs, **how)
        if inputs is None:
            return nll, counts, jnp.zeros_like(nll)
        return nll, counts, loss.lost(self.model.semantic, network, batch, inputs)

    def dtype_of(self, name: str, shape: tuple[int, ...]) -> Any:
        """What a tensor is computed in: tables and linears in `dtype`, norms, biases and gates in float32."""
        low = weights.is_matrix(STAGES[self.stage], shape) and not name.endswith(".gate")
        return weights.DTYPES[self.dtype if low else "float32"]

    def over_devices(self, function: Callable[..., Any], *specs: Any, out: Any) -> Callable[..., Any]:
        """`function` on each device with its share of the rows. On one device: `function`."""
        if self.mesh.size == 1:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)

    def sum(self, tree: Any) -> Any:
        """Inside `over_devices`: the sum over devices."""
        return tree if self.mesh.size == 1 else lax.psum(tree, "data")


OWN = 0x10000
"""Added to a part's number for the key of its own codes: parts are fewer (`MAX_BATCH`)."""

ROWS = P(None, "data")
"""Batches come as (accumulate, rows of a part, ...); each part's rows are divided over the devices."""


def make_step(recipe: Recipe, optimizer: optax.GradientTransformation) -> Any:
    """The compiled update (params, opt_state, frozen, batch, `Now`) → (params, opt_state, `Metrics`).

    `params` and `opt_state` are donated. `batch` is a `Batch` of arrays (accumulate, B / accumulate, ...). The gradient
    is that of the sum over all targets divided by their number, however many parts and devices there are, clipped to a
    global norm. What `optimizer` makes of it, times the learning rate, is subtracted from the weights.
    """

    def gradient(params: Tensors, frozen: Tensors, batch: Batch, key: jax.Array) -> Any:
        if recipe.mesh.size > 1:
            key = jax.random.fold_in(key, lax.axis_index("data"))
        noisy = recipe.dropout > 0 or recipe.adapter_dropout > 0

        def summed(params: Tensors, part: Batch, i: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            noise = Dropout(jax.random.fold_in(key, i), recipe.dropout, recipe.adapter_dropout) if noisy else None
            nll, counts, lost = recipe.loss(params, frozen, part, noise, jax.random.fold_in(key, i + OWN))
            return jnp.sum(nll + recipe.alignment * lost), (nll, counts, lost)

        def one(total: Tensors, at: tuple[Batch, jax.Array]) -> tuple[Tensors, tuple[jax.Array, ...]]:
            part, out = jax.grad(summed, has_aux=True)(params, *at)
            return jax.tree.map(jnp.add, total, part), out

        parts = batch.targets.shape[0]
        if parts == 1:
            grads, out = jax.grad(summed, has_aux=True)(params, Batch(*(x[0] for x in batch)), 0)
            out = jax.tree.map(lambda x: x[None], out)
        else:
            grads, out = lax.scan(one, jax.tree.map(jnp.zeros_like, params), (batch, jnp.arange(parts)))
        return recipe.sum(grads), *out

    gradient = recipe.over_devices(gradient, P(), P(), ROWS, P(), out=(P(), ROWS, ROWS, ROWS))

    def step(params: Tensors, opt_state: Any, frozen: Tensors, batch: Batch, now: Now) -> tuple[Tensors, Any, Metrics]:
        grads, nll, counts, lost = gradient(params, frozen, batch, jax.random.fold_in(now.key, now.step))
        tokens = jnp.sum(counts)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in grads.values())) / tokens
        # One factor for mean and clipping: XLA then reads the gradient where it lies. With optax's clipping, whose
        # division it does not repeat, it writes a second copy of all gradients.
        factor = jnp.minimum(1.0, now.clip / norm) / tokens
        grads = jax.tree.map(lambda g: g * factor, grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - now.learning_rate * u, params, updates)
        return params, opt_state, Metrics(jnp.sum(nll) / tokens, tokens, norm, nll.reshape(-1), jnp.sum(lost) / tokens)

    return jax.jit(step, donate_argnums=(0, 1), out_shardings=NamedSharding(recipe.mesh, P()))


def make_evaluate(recipe: Recipe) -> Any:
    """The compiled function (params, frozen, batch) → per-row sums (B,) float32 and counts (B,) int32, no dropout."""

    def local(params: Tensors, frozen: Tensors, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return lax.map(lambda part: recipe.loss(params, frozen, part, None)[:2], batch)

    sharded = recipe.over_devices(local, P(), P(), ROWS, out=(ROWS, ROWS))

    def evaluate(params: Tensors, frozen: Tensors, batch: Batch) -> tuple[jax.Array, jax.Array]:
        nll, counts = sharded(params, frozen, batch)
        return nll.reshape(-1), counts.reshape(-1)

    return jax.jit(evaluate, out_shardings=NamedSharding(recipe.mesh, P()))


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate after `step` updates: linear up to the peak, then half a cosine down to the last step's."""
    peak, warmup, n = config.peak_learning_rate, config.warmup_steps, step + 1  # no update is wasted on a rate of 0
    if n <= warmup:
        return peak * n / warmup
    last = config.final_learning_rate_ratio * peak
    return last + (peak - last) * (1 + math.cos(math.pi * (n - warmup) / (config.steps - warmup))) / 2


def decays(name: str) -> bool:
    """Whether weight decay applies to a tensor: to linears, never to tables, norms, biases or adapters."""
    parts = name.split(".")
    return parts[-1] == "weight" and parts[0] not in ("wte", "wtes", "wpe") and not parts[-2].startswith("ln_")


def _decay_mask(params: Any) -> dict[str, bool]:
    return {name: decays(name) for name in params}


def orthogonalised(name: str) -> bool:
    """Whether Muon takes a tensor: the linears of the blocks, as its author advises; not tables, heads or norms."""
    return name.startswith("blocks.") and decays(name)


MUON_ROUNDS, MUON_RMS = 3, 0.2
"""Newton-Schulz iterations, and the size of Muon's steps, which is about AdamW's (https://arxiv.org/abs/2502.16982)."""


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """AdamW on tensors by name, or Muon on some of them; the learning rate and clipping are `make_step`'s."""
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2)
    decay = optax.add_decayed_weights(config.weight_decay, mask=_decay_mask)
    if config.optimizer == "adamw":
        return optax.chain(adam, decay)
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # of a `Linear`
    muon = optax.chain(
        # With a first scaling by rows three iterations do what five do without.
        optax.contrib.scale_by_muon(
            ns_steps=MUON_ROUNDS,
            beta=config.beta1,
            preconditioning="aol",
            weight_dimension_numbers=lambda tensors: jax.tree.map(lambda _: axes, tensors),
        ),
        optax.stateless(lambda steps, _: jax.tree.map(lambda x: MUON_RMS * max(x.shape) ** 0.5 * x, steps)),
    )
    return optax.chain(optax.partition({"muon": muon, "adam": adam}, _optimizers), decay)


def _optimizers(params: Any) -> dict[str, str]:
    return {name: "muon" if orthogonalised(name) else "adam" for name in params}


# --- the arrays of a run ----------------------------------------------------------------------------------------------


class Trainer:
    """A network in training, on this process's devices: weights, optimizer state, compiled functions. No files.

    Call `start`, or `load` with arrays of a checkpoint; then `step` with batches from `put`.

    Args:
      config: of it, everything but data, paths and intervals.
      model: the whole model's config.
      tensors: name → float32 array, of the stage's network; with LoRA, without adapters.
      devices: None: all of this process.
      codebooks: (Q, codebook_size, D) of the codec, which `fine_smoothing` asks.

    Attributes:
      params: name → float32 array, what is trained.
      opt_state: optax's.
      frozen: name → array, the rest; matrices in the dtype of the computation.
      base: `adapters.base_digest` of the tensors, with LoRA.

    Raises:
      ConfigError: rows that do not divide over the devices, patterns of `freeze` that match nothing or everything.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: BarkConfig,
        tensors: Mapping[str, np.ndarray],
        *,
        devices: Sequence[jax.Device] | None = None,
        codebooks: np.ndarray | None = None,
    ):
        devices = list(devices or jax.local_devices())
        check_devices(config, len(devices))
        self.config, self.model, self.network = config, model, STAGES[config.stage]
        mesh = Mesh(np.array(devices), ("data",))
        self._everywhere, self._rows = NamedSharding(mesh, P()), NamedSharding(mesh, ROWS)
        abstract = weights.abstract(model, self.network)
        if config.lora is None:
            chosen = trained_names(config, list(tensors))
        else:
            self.base = adapters.base_digest(tensors)
            abstract, tensors, chosen = lora.add(abstract, tensors, config.lora, seed=config.seed)
        self._start = {name: tensors[name] for name in chosen}
        self.still = {name: tensor for name, tensor in tensors.items() if name not in self._start}
        self._shapes = {name: jax.ShapeDtypeStruct(tensor.shape, np.float32) for name, tensor in self._start.items()}
        self.recipe = Recipe(
            stage=config.stage,
            model=model,
            network=abstract,
            mesh=mesh,
            dtype=compute_dtype(config, devices[0].platform),
            remat=config.remat or ("none" if devices[0].platform == "cpu" else "block"),
            dropout=config.dropout,
            adapter_dropout=0.0 if config.lora is None else config.lora.dropout,
            coarse_own=config.coarse_own,
            guidance=config.guidance,
            sharpness=config.sharpness,
            alignment=config.alignment,
            vectors=None if codebooks is None else loss.scaled(codebooks, config.fine_smoothing),
        )
        self.optimizer = make_optimizer(config)
        self.compiled_step = make_step(self.recipe, self.optimizer)
        self.compiled_evaluate = make_evaluate(self.recipe)
        self.params: Tensors = {}
        self.opt_state: Any = None
        self.frozen: Tensors = {}
        self._key = jax.device_put(jax.random.key(config.seed), self._everywhere)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of trained weights, and of all."""
        trained = sum(math.prod(leaf.shape) for leaf in self._shapes.values())
        return trained, sum(math.prod(leaf.shape) for leaf in weights.names(self.recipe.network).values())

    def abstract(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shapes, dtypes and places of `params` and of the optimizer's state, by name."""
        state = _named(jax.eval_shape(self.optimizer.init, self._shapes))
        placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere)  # noqa: E731
        return {k: placed(v) for k, v in self._shapes.items()}, {k: placed(v) for k, v in state.items()}

    def start(self) -> None:
        """Put the initial weights on the devices, and forget them here."""
        self._place_frozen()
        self.params = {name: self._place(tensor) for name, tensor in self._start.items()}
        self._start = {}
        self.opt_state = jax.jit(self.optimizer.init, out_shardings=self._everywhere)(self.params)

    def load(self, params: Mapping[str, jax.Array], optimizer: Mapping[str, jax.Array]) -> None:
        """Go on with arrays as `state` gave them."""
        self._place_frozen()
        self.params = dict(params)
        self._start = {}
        state = jax.eval_shape(self.optimizer.init, self._shapes)
        self.opt_state = jax.tree.unflatten(jax.tree.structure(state), [optimizer[name] for name in _named(state)])

    def state(self) -> tuple[Tensors, Tensors]:
        """`params`, and the optimizer's state by name."""
        return self.params, _named(self.opt_state)

    def release(self) -> None:
        """Free the memory of the devices."""
        self.params, self.opt_state, self.frozen = {}, None, {}

    def put(self, batch: Batch) -> Batch:
        """A batch of `config.batch` rows (numpy) → arrays on the devices, in parts, for `step` and `evaluate`."""
        parts = self.config.accumulate
        split = lambda x: np.asarray(x).reshape(parts, len(x) // parts, *x.shape[1:])  # noqa: E731
        return Batch(*(jax.device_put(split(x), self._rows) for x in batch))

    def step(self, batch: Batch, index: int) -> Metrics:
        """Update once, `index` updates having been made before; does not wait for the devices."""
        self.params, self.opt_state, metrics = self.compiled_step(
            self.params, self.opt_state, self.frozen, batch, self.now(index)
        )
        return metrics

    def now(self, index: int) -> Now:
        """What `compiled_step` is told at the update that `index` updates were made before."""
        rate = learning_rate(self.config, index)
        return Now(self._key, np.int32(index), np.float32(rate), np.float32(self.config.clip))

    def evaluate(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Per-row sums of the negative log-likelihood, and counts of targets."""
        nll, counts = self.compiled_evaluate(self.params, self.frozen, batch)
        return np.asarray(nll), np.asarray(counts)

    def _place(self, tensor: np.ndarray) -> jax.Array:
        # A copy: what is donated must not be the caller's own memory.
        return jax.device_put(tensor, self._everywhere, may_alias=False)

    def _place_frozen(self) -> None:
        self.frozen = {
            name: self._place(tensor.astype(self.recipe.dtype_of(name, tensor.shape), copy=False))
            for name, tensor in self.still.items()
        }
        if self.config.lora is not None:  # the product is made without them
            self.still = {}


def _named(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def compute_dtype(config: TrainConfig, platform: str) -> str:
    """`config.dtype`, or what is right for a platform ("cpu", "gpu", "tpu")."""
    return config.dtype or ("float32" if platform == "cpu" else "bfloat16")


def check_devices(config: TrainConfig, n: int) -> None:
    """Raises `ConfigError` if the rows of a part do not divide over `n` devices."""
    rows = config.batch // config.accumulate
    if rows % n:
        raise ConfigError(
            f"batch is {config.batch} and accumulate is {config.accumulate}, so {rows} rows are computed at once: "
            f"that must be a multiple of the {n} devices"
        )


def trained_names(config: TrainConfig, names: Sequence[str]) -> list[str]:
    """The tensors that no pattern of `freeze` matches. Raises `ConfigError`: a pattern matches none, or all do."""
    chosen = set(names)
    for pattern in config.freeze:
        found = fnmatch.filter(names, pattern)
        if not found:
            layers = sorted({name.split(".")[0] for name in names})
            raise ConfigError(
                f"freeze holds {pattern!r}, which matches no tensor of the network: names begin with "
                f"{', '.join(layers)}, for example {names[-1]}"
            )
        chosen -= set(found)
    if not chosen:
        raise ConfigError(f"freeze is {list(config.freeze)}: it matches every tensor, and leaves nothing to train")
    return [name for name in names if name in chosen]


# --- from settings to a product ---------------------------------------------------------------------------------------


def train(config: TrainConfig, *, progress: bool = True, resume: bool | None = None) -> Result:
    """Train one network, from the beginning or from the newest checkpoint in `config.out`.

    Everything is checked before anything is computed. A first Ctrl-C or SIGTERM lets the step end and saves a
    checkpoint, then does what it usually does; a second one does so at once.

    Args:
      progress: report on stderr: a line per evaluation, and a bar on a terminal.
      resume: None: go on if the folder holds a run with the same settings. True: it must. False: it must not.

    Returns:
      How it ended. The product is in the folder: ``semantic.safetensors``, ``coarse.safetensors`` or
      ``fine.safetensors`` with every tensor in float32, or ``adapter.safetensors``.

    Raises:
      ConfigError: settings that do not fit the model, the rows or the devices.
      DataError: rows that cannot be used.
      RunError: the folder holds something else, or a run with other settings or other data; every difference is named.
      HubError, CheckpointError: no such model, or a damaged one.
      TrainingError: a loss or gradient that is not finite. Checkpoints are as they were.
      OSError: something could not be written; the message names it. Earlier checkpoints are as they were.
    """
    _check_packages()
    with Run(config.out, resume=resume) as run:
        plan = _prepare(config, run)
        return _Loop(plan, run, _Reporter(config, progress)).run()


@dataclass(frozen=True)
class _Plan:
    """What was checked, and is ready to compute."""

    config: TrainConfig
    trainer: Trainer
    batches: Batches
    validation: Validation | None
    settings: dict[str, Any]
    summary: str


def _check_packages() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("training draws its losses with matplotlib: pip install 'bark-jax[train]'")
    if jax.process_count() > 1:
        raise ConfigError(f"JAX runs as {jax.process_count()} processes: training uses one, with all of its devices")


def _prepare(config: TrainConfig, run: Run) -> _Plan:
    source = _Source.of(config)
    model = source.config
    tokenizer = text.load_tokenizer(source.tokenizer, model.semantic) if source.tokenizer is not None else None
    check_model(config, model)
    read = lambda paths: data.read(paths, model, config.stage, tokenizer=tokenizer)  # noqa: E731
    corpus = read(config.data)
    rows, checked = corpus.split("train"), corpus.split("validation")
    if config.patience is not None and len(checked) == 0:
        raise ConfigError(
            f"patience is {config.patience}, and no row of the data has the split 'validation': nothing would tell "
            "when to stop"
        )
    others = read(config.rehearsal) if config.rehearsal else None
    if config.alignment > 0:
        corpus, others = corpus.aligned(), None if others is None else others.aligned()
    options = Options(
        coarse_targets=config.coarse_loss, max_coarse_history=config.coarse_history, codebooks=config.codebooks
    )
    how: dict[str, Any] = {
        "batch": config.batch,
        "history_share": config.history_share,
        "bucket": config.bucket,
    }
    batches = Batches(
        model,
        config.stage,
        corpus,
        rows,
        seed=config.seed,
        rehearsal=None if others is None else (others, others.split("train")),
        rehearsal_share=0.0 if others is None else config.rehearsal_share,
        options=dataclasses.replace(
            options,
            joined=config.joined,
            text_noise=config.text_noise,
            coarse_noise=config.coarse_noise,
            bare=config.bare,
        ),
        **how,
    )
    validation = Validation(model, config.stage, corpus, checked, options=options, **how) if len(checked) else None

    tensors = source.tensors()
    codebooks = source.codebooks() if config.fine_smoothing > 0 else None
    trainer = Trainer(config, model, tensors, codebooks=codebooks)
    params, optimizer = trainer.abstract()
    settings = {
        **config.settings(),
        "dtype": trainer.recipe.dtype,
        "contents of data": corpus.digest,
        "contents of rehearsal": None if others is None else others.digest,
        "contents of model": _digest(model, tensors if codebooks is None else tensors | {"codebooks": codebooks}),
    }
    run.check(settings)
    # Of one checkpoint while it is written; the product is not larger.
    run.check_room(sum(leaf.size * leaf.dtype.itemsize for leaf in [*params.values(), *optimizer.values()]))
    trained, total = trainer.sizes
    kind = "from random weights" if config.config is not None else "fully" if config.lora is None else "as LoRA"
    device = trainer.recipe.mesh.devices.flat[0]
    summary = (
        f"{config.stage} {kind}: {trained:,} of {total:,} weights, {len(rows)} rows "
        f"({corpus.durations[rows].sum() / 60:.1f} minutes), {len(checked)} for validation, "
        f"{trainer.recipe.mesh.size} × {device.device_kind}, {trainer.recipe.dtype}"
    )
    return _Plan(config, trainer, batches, validation, settings, summary)


@dataclass(frozen=True)
class _Source:
    """Where a run's weights come from: a native folder, or only a config."""

    config: BarkConfig
    network: str
    folder: Path | None
    tokenizer: Path | None
    seed: int

    @classmethod
    def of(cls, config: TrainConfig) -> _Source:
        network = STAGES[config.stage]
        text_stage = config.stage == "text"
        if config.config is not None:
            tokenizer = Path(config.tokenizer) if config.tokenizer is not None else None
            return cls(BarkConfig.load(config.config), network, None, tokenizer, config.seed)
        assert config.model is not None
        folder, _ = library.locate(config.model)
        for name in ("config.json", f"{network}.safetensors", *(["tokenizer.json"] if text_stage else [])):
            if not (folder / name).is_file():
                raise weights.CheckpointError(f"{folder} has no {name}, which stage {config.stage} needs")
        tokenizer = folder / "tokenizer.json" if text_stage else None
        return cls(BarkConfig.load(folder / "config.json"), network, folder, tokenizer, config.seed)

    def tensors(self) -> dict[str, np.ndarray]:
        """The network's tensors, float32. Raises `CheckpointError` as `weights.read_network` does."""
        if self.folder is not None:
            return weights.read_network(self.folder / f"{self.network}.safetensors", self.config, self.network)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            made = weights.names(weights.build(self.config, self.network, seed=self.seed))
        return {name: np.asarray(tensor) for name, tensor in made.items()}

    def codebooks(self) -> np.ndarray:
        """What the codec's codes stand for. Raises `CheckpointError` as `weights.read_network` does."""
        assert self.folder is not None  # `TrainConfig` sees to it
        return weights.read_network(self.folder / "codec.safetensors", self.config, "codec")["quantizer.codebooks"]


def check_model(config: TrainConfig, model: BarkConfig) -> None:
    """Raises `ConfigError` if the settings do not fit the model's sizes."""
    low, high = model.fine.network.n_codes_given, model.fine.n_codebooks - 1
    for codebook in config.codebooks or ():
        if not low <= codebook <= high:
            raise ConfigError(
                f"codebooks is {list(config.codebooks or ())}: the fine network predicts codebooks {low} to {high}"
            )


def _digest(model: BarkConfig, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(model.to_json().encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


class _Loop:
    """The steps of a run, and what is decided between them."""

    def __init__(self, plan: _Plan, run: Run, report: _Reporter):
        self.config, self.plan, self.folder, self.report = plan.config, plan, run, report
        self.trainer = plan.trainer
        self.step = 0
        """Updates made."""
        self.before: float | None = None
        """Validation loss of the weights that training starts from."""
        self.best: dict[str, Any] | None = None
        """Step and validation loss of the best evaluation."""
        self.stale = 0
        """Evaluations since then."""

    def run(self) -> Result:
        self.folder.begin(self.config, self.plan.settings)
        with _Signals() as signals:
            try:
                self._start()
                self._train(signals)
                result = None if signals.received else self._finish()
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong is worth more than a picture of it
                    self._plot()
                raise
            try:
                self._plot()
            except Exception as error:  # a run is not lost for its picture
                self.report.say(f"no picture of the losses: {error}")
        if result is None:  # and the signal did nothing
            raise KeyboardInterrupt(f"training was stopped at step {self.step}, which is saved")
        return result

    def _plot(self) -> None:
        self.folder.plot(f"{self.config.stage}, {self.folder.folder.name}")

    def _start(self) -> None:
        latest = self.folder.latest
        self.report.say(self.plan.summary)
        if latest is None:
            self.trainer.start()
            if self.plan.validation is None:
                self.report.say("no validation rows: the last checkpoint will be the product, however well it does")
            else:
                self._validate(self.plan.validation)
            return
        record = self.folder.record(latest)
        weights_, optimizer = self.trainer.abstract()
        restored = self.folder.restore(latest, weights=weights_, optimizer=optimizer)
        self.trainer.load(restored["weights"], restored["optimizer"])
        self.step, self.best, self.stale = latest, record["best"], record["stale"]
        self.before = record.get("before")  # which checkpoints of older versions do not have
        self.report.say(f"going on from step {latest}")

    @property
    def _exhausted(self) -> bool:
        return self.config.patience is not None and self.stale >= self.config.patience

    def _train(self, signals: _Signals) -> None:
        if self.step >= self.config.steps or self._exhausted:
            return
        config = self.config
        waiting: _Step | None = None
        steps = self.plan.batches.iterate(self.step)
        with contextlib.closing(steps), self.report.bar(self.step):  # type: ignore[type-var]
            clock = time.perf_counter()
            for index, batch in steps:
                # The devices are given the next step before the last one is looked at, so that they never wait.
                metrics = self.trainer.step(self.trainer.put(batch), index)
                if waiting is not None:
                    clock = self._settle(waiting, clock)
                self.step = index + 1
                waiting = _Step(self.step, batch, metrics)
                last = self.step == config.steps
                evaluate = last or self.step % config.evaluate_every == 0
                save = last or self.step % config.save_every == 0
                if not (evaluate or save or signals.received):
                    continue
                self._settle(waiting, clock)
                waiting = None
                if evaluate and self.plan.validation is not None:
                    save |= self._validate(self.plan.validation) or self._exhausted
                if save or signals.received:
                    self._save()
                if signals.received:
                    self.report.say(f"stopped by {signals.received.name}; step {self.step} is saved")
                    break
                if last or self._exhausted:
                    break
                clock = time.perf_counter()

    def _settle(self, done: _Step, clock: float) -> float:
        """Wait for a step, check and log it; gives the time."""
        loss_, norm = float(done.metrics.loss), float(done.metrics.grad_norm)
        now = time.perf_counter()
        if not (math.isfinite(loss_) and math.isfinite(norm)):
            raise self._not_finite(done, loss_, norm)
        seconds = max(now - clock, 1e-9)
        n_tokens = int(done.metrics.tokens)
        self.report.step(done.number, loss_, n_tokens, seconds)
        if done.number % self.config.log_every == 0:
            self.folder.log(
                step=done.number,
                loss=loss_,
                tokens=n_tokens,
                learning_rate=learning_rate(self.config, done.number - 1),
                grad_norm=norm,
                seconds=round(seconds, 6),
                tokens_per_s=round(n_tokens / seconds, 3),
                **({"alignment": float(done.metrics.lost)} if self.config.alignment > 0 else {}),
            )
        return now

    def _not_finite(self, done: _Step, loss_: float, norm: float) -> TrainingError:
        nll = np.asarray(done.metrics.nll)
        bad = [int(row) for row, value in zip(done.batch.rows, nll, strict=True) if not math.isfinite(value)]
        if bad:
            what = f"the loss is {loss_}, because of " + self._rows(bad)
        else:
            what = (
                f"the loss is {loss_:.6g} and the norm of the gradient {norm}; each row's loss is finite. The batch "
                f"was {self._rows([int(row) for row in done.batch.rows])}"
            )
        latest = self.folder.latest
        kept = "there is no checkpoint yet" if latest is None else f"the checkpoint at step {latest} is intact"
        return TrainingError(
            f"Training stopped at step {done.number}: {what}\nThat step is not saved; {kept}. If the rows are right, "
            "try a lower learning_rate or a longer warmup in a new folder"
        )

    def _rows(self, rows: Sequence[int]) -> str:
        shown = [self.plan.batches.describe(row) for row in dict.fromkeys(rows)]
        return "; ".join(shown[:8]) + (f"; and {len(shown) - 8} more" if len(shown) > 8 else "")

    def _validate(self, validation: Validation) -> bool:
        """Evaluate; gives whether it is the best so far. Step 0 shows where training starts, and is never the best: a
        run's product is something that was trained, and `_finish` says so if it is worse.
        """
        total, count = 0.0, 0
        for batch in validation:
            nll, counts = self.trainer.evaluate(self.trainer.put(batch))
            if not np.all(np.isfinite(nll)):
                bad = [int(row) for row, value in zip(batch.rows, nll, strict=True) if not math.isfinite(value)]
                shown = "; ".join(map(validation.describe, bad[:8]))
                raise TrainingError(f"The validation loss at step {self.step} is not finite, because of {shown}")
            total += float(np.sum(nll, dtype=np.float64))
            count += int(np.sum(counts))
        value = total / count
        self.folder.log(step=self.step, validation_loss=value)
        if self.step == 0:
            self.before = value
        improved = self.step > 0 and (self.best is None or value < self.best["validation_loss"])
        if improved:
            self.best, self.stale = {"step": self.step, "validation_loss": value}, 0
        elif self.step > 0:
            self.stale += 1
        self.report.evaluation(self.step, value, improved)
        return improved

    def _save(self) -> None:
        params, optimizer = self.trainer.state()
        about = {"before": self.before, "best": self.best, "stale": self.stale}
        record = {"step": self.step, "settings": self.plan.settings, **about}
        best = None if self.best is None else self.best["step"]
        self.folder.save(self.step, params, optimizer, record, keep=self.config.keep, best=best)

    def _finish(self) -> Result:
        """Write the product, from the best checkpoint."""
        step = self.step if self.best is None else self.best["step"]
        value = None if self.best is None else self.best["validation_loss"]
        params, _ = self.trainer.abstract()
        self.trainer.release()
        trained = self.folder.restore(step, weights=params)["weights"]
        tensors = {**self.trainer.still, **{name: np.asarray(tensor) for name, tensor in trained.items()}}
        wrong = [name for name, tensor in tensors.items() if not weights.all_finite(tensor)]
        if wrong:
            raise TrainingError(
                f"The weights after step {step} are not finite, {wrong[0]} for one: there is no product. Try a lower "
                "learning_rate in a new folder"
            )
        product = self._write(tensors, {"stage": self.config.stage, "step": str(step), "validation_loss": f"{value}"})
        said = "" if value is None else f", validation {value:.4f}"
        self.report.say(f"{product} is the product (step {step}{said})")
        if value is not None and self.before is not None and value >= self.before:
            self.report.say(
                f"warning: before training the validation loss was {self.before:.4f}, so this run has gained nothing. "
                "Try a lower learning_rate or more data in a new folder, or do without it"
            )
        return Result(
            folder=self.folder.folder,
            product=product,
            step=self.step,
            best_step=step,
            validation_loss=value,
            reason="steps" if self.step >= self.config.steps else "patience",
        )

    def _write(self, tensors: Mapping[str, np.ndarray], notes: dict[str, str]) -> Path:
        trainer = self.trainer
        if self.config.lora is None:
            path = self.folder.folder / f"{trainer.network}.safetensors"
            # One key: the library writes several in an order that changes.
            write_tensors(path, tensors, {"trained": json.dumps(notes, sort_keys=True)})
            return path
        path = self.folder.folder / "adapter.safetensors"
        names = sorted(name.removesuffix(".a") for name in tensors if name.endswith(".a"))
        pairs = {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in names}
        part = adapters.Part(pairs, self.config.lora.scaled_alpha, trainer.base, notes)
        adapters.save(path, adapters.Adapter({trainer.network: part}, trainer.model.fingerprint))
        return path


class _Step(NamedTuple):
    number: int
    batch: Batch
    metrics: Metrics


class _Signals:
    """While it is active, a first SIGINT or SIGTERM is only noted, and acts at the end; a second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # What is ignored (nohup) stays so, and what was set outside of Python cannot be put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._old:
            signal.signal(*self._old.popitem())

    def __exit__(self, kind: Any, *_: object) -> None:
        self._restore()
        if self.received is not None and kind is None:
            signal.raise_signal(self.received)


class _Reporter:
    """Lines and a bar on stderr."""

    def __init__(self, config: TrainConfig, wanted: bool):
        self._config, self._wanted = config, wanted
        self._bar: Any = None
        self._recent: list[tuple[float, float, int]] = []  # loss, seconds, tokens of the last steps

    def say(self, line: str) -> None:
        if not self._wanted:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def bar(self, done: int) -> Iterator[None]:
        if self._wanted and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._config.steps, initial=done, desc=self._config.stage, unit="step")
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def step(self, number: int, loss_: float, n_tokens: int, seconds: float) -> None:
        self._recent = [*self._recent[-49:], (loss_, seconds, n_tokens)]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss_:.3f}, {n_tokens / seconds:,.0f} tokens/s", refresh=False)
            self._bar.update(number - self._bar.n)

    def evaluation(self, step: int, value: float, improved: bool) -> None:
        steps = self._config.steps
        if not self._recent:
            self.say(f"step {step}/{steps}: validation {value:.4f} before training")
            return
        losses, seconds, n_tokens = zip(*self._recent, strict=True)
        # The median, because the first step of a length compiles.
        rate = statistics.median(n / s for n, s in zip(n_tokens, seconds, strict=True))
        left = statistics.median(seconds) * (steps - step)
        self.say(
            f"step {step}/{steps}: loss {statistics.fmean(losses):.4f}, validation {value:.4f}"
            f"{' (best)' if improved else ''}, {rate:,.0f} tokens/s, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
