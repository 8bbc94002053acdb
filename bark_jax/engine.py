"""The stages on a device: requests in, tokens and audio out, in batches of a compiled row count. No maths, no checks.

Takes checked requests and the networks' weights; knows which rows a batch has, which adapters belong to a row, where
the weights are, and how each stage is called, whole (`to_semantic`, `to_coarse`, `to_fine`, `decode`) or piece by piece
(`run`, `filler`). Knows nothing of texts, of voices as files, or of what is made of the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bark_jax import adapters as adapter_files
from bark_jax import coarse, codec, fine, sampling, semantic, tokens
from bark_jax import weights as checkpoints
from bark_jax.adapters import Adapter
from bark_jax.config import BarkConfig
from bark_jax.flat import Weights
from bark_jax.placement import Place
from bark_jax.requests import Request
from bark_jax.rows import together

Report = Callable[[str, int, int], None]
"""Told of progress: (stage, done, total)."""

_STAGES: dict[str, Any] = {"semantic": semantic, "coarse": coarse, "fine": fine}

MAX_ROWS = 16
"""Most rows of a batch unless `rows` says otherwise: about 150 MB of cache each with the small model in float32."""


class Engine:
    """The networks of one model.

    Args:
      weights: by network: semantic, coarse, fine, codec.
      name: of the model, for errors.
      dtype: "float32", "bfloat16" or "int8".
      rows: of every batch, or None.
      adapters: by name.
      place: where the weights are, or, with `offload`, are to be; None: one device, where they are.
      offload: whether weights are there only while their stage runs.
    """

    def __init__(
        self,
        config: BarkConfig,
        weights: Mapping[str, Weights],
        *,
        name: str,
        dtype: str,
        rows: int | None,
        adapters: Mapping[str, Adapter],
        place: Place | None,
        offload: bool,
    ):
        self.config, self.name, self.rows, self.offload = config, name, rows, offload
        self.place = place or Place(tuple(weights["semantic"].leaves[0].devices()))
        self.weights = dict(weights)
        self.adapters = tuple(adapters)
        self._given = dict(adapters)
        self._attach()
        # XLA's CPU programs convert a whole bfloat16 cache to float32 and back at every step.
        low = dtype != "float32" and self.device.platform != "cpu"
        self._cache_dtype = jnp.bfloat16 if low else jnp.float32

    @property
    def device(self) -> jax.Device:
        """Of the place, the device that is this process's own."""
        return self.place.local or self.place.devices[0]

    def on(self, place: Place) -> Engine:
        """A copy that computes in another place; of weights that are offloaded there is one copy for all."""
        self.check_loaded()
        other = copy.copy(self)
        other.place = place
        if not self.offload:
            other.weights = {name: place.put(name, part) for name, part in self.weights.items()}
            other._attach()
        return other

    def _attach(self) -> None:
        given = list(self._given.values())
        self._adapted = {
            network: adapter_files.attach(self.weights[network], network, given, self.adapters)
            for network in adapter_files.NETWORKS
            if any(network in adapter.networks for adapter in given)
        }

    def to_semantic(
        self, requests: list[Request], report: Report, *, rows: int | None = None
    ) -> tuple[list[np.ndarray], list[bool]]:
        """Ids (n,) of each, and whether it ended by itself; `rows`: of the batch, if not `row_count`."""
        return self._stage("semantic", requests, self.semantic_prompts(requests), report, rows=rows)

    def semantic_prompts(self, requests: list[Request]) -> np.ndarray:
        config = self.config.semantic
        histories = [None if r.voice is None else r.voice.semantic for r in requests]
        return np.stack([semantic.prompt(config, r.ids, h) for r, h in zip(requests, histories, strict=True)])

    def to_coarse(self, requests: list[Request], said: list[np.ndarray], report: Report) -> list[np.ndarray]:
        return self._stage("coarse", requests, self.coarse_prompts(requests, said), report)

    def coarse_prompts(self, requests: list[Request], said: list[np.ndarray]) -> list[coarse.Prompt]:
        config = self.config.coarse
        prompts = []
        for request, words in zip(requests, said, strict=True):
            history = None if request.voice is None else (request.voice.semantic, request.voice.coarse)
            most = request.sampling.max_coarse_history or config.max_history
            prompts.append(coarse.prompt(config, words, history, most))
        return prompts

    def to_fine(self, requests: list[Request], codes: list[np.ndarray], report: Report) -> list[np.ndarray]:
        config = self.config.fine
        states = [
            fine.prompt(config, part, None if r.voice is None else r.voice.fine)
            for r, part in zip(requests, codes, strict=True)
        ]
        return self._stage("fine", requests, states, report, n_given=len(codes[0]))

    def decode(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Clips of about the same length go together: a batch takes as long as its longest."""
        rows = self.row_count(len(codes))
        order = sorted(range(len(codes)), key=lambda i: codes[i].shape[1])
        out: dict[int, np.ndarray] = {}
        with self.placed("codec") as weights:
            for start in range(0, len(order), rows):
                part = order[start : start + rows]
                empty = np.zeros((len(codes[part[0]]), 0), np.int32)
                waves = codec.decode(weights.module, [*(codes[i] for i in part), *[empty] * (rows - len(part))])
                out.update(zip(part, waves, strict=False))
        return [out[i] for i in range(len(codes))]

    def network(self, name: str) -> Weights:
        """A network, with adapters if it has any."""
        self.check_loaded()
        return self._adapted[name].weights if name in self._adapted else self.weights[name]

    @contextmanager
    def placed(self, name: str) -> Iterator[Any]:
        """A network in its place; with `offload` it leaves it afterwards."""
        weights = self.network(name)
        if not self.offload:
            yield weights
            return
        placed = self.place.put(name, weights)
        try:
            yield placed
        finally:
            free(placed, weights)

    def check_loaded(self) -> None:
        if not self.weights:
            raise checkpoints.CheckpointError(f"{self.name} was unloaded: load it again")

    def _stage(
        self,
        name: str,
        requests: list[Request],
        prompts: Any,
        report: Report,
        *,
        rows: int | None = None,
        **options: Any,
    ) -> Any:
        """What a stage generates from the requests' prompts; `options` are what only this stage is told."""
        with self.placed(name) as weights:
            return _STAGES[name].generate(
                *self._arguments(name, weights, requests, prompts),
                **self._options(name, weights, requests, rows),
                **options,
                progress=lambda done, total: report(name, done, total),
            )

    def run(self, name: str, requests: list[Request], prompts: Any) -> Iterator[Any]:
        """What a stage generates, piece by piece: see the `run` of `semantic` and of `coarse`."""
        with self.placed(name) as weights:
            yield from _STAGES[name].run(
                *self._arguments(name, weights, requests, prompts), **self._options(name, weights, requests)
            )

    def filler(self, request: Request) -> Callable[[fine.State, tokens.FineWindow, int], None]:
        """A function that fills a window of one request's clip, which has the coarse codebooks."""
        weights = self.network("fine")
        options = self._options("fine", weights, [request])
        rows = together(options["rows"], self.device.platform)
        owners = [0, *[None] * (rows - 1)]
        network = (options["networks"] or (lambda owners: weights))(owners)
        config, given = self.config.fine, self.config.coarse.n_codebooks
        keys = np.repeat(sampling.stage_keys([request.seed], "fine"), rows, axis=0)

        def fill(state: fine.State, window: tokens.FineWindow, number: int) -> None:
            places = [(state, window), *[None] * (rows - 1)]
            settings, numbers = [request.sampling] * rows, [number] * rows
            fine.fill(network, config, places, settings, keys, numbers, n_given=given)

        return fill

    def _arguments(self, name: str, weights: Weights, requests: list[Request], prompts: Any) -> tuple[Any, ...]:
        """What every stage takes."""
        keys = sampling.stage_keys([r.seed for r in requests], name)
        return weights, getattr(self.config, name), prompts, [r.sampling for r in requests], keys

    def _options(self, name: str, weights: Weights, requests: list[Request], rows: int | None = None) -> dict[str, Any]:
        def networks(owners: Sequence[int | None]) -> Weights:
            adapters = [None if owner is None else requests[owner].adapter for owner in owners]
            chosen = [0 if adapter is None else 1 + self.adapters.index(adapter) for adapter in adapters]
            return self._adapted[name].rows(chosen, weights)

        return {
            "rows": rows or self.row_count(len(requests)),
            "narrows": self.rows is None,
            "networks": networks if name in self._adapted else None,
        } | ({} if name == "fine" else {"cache_dtype": self._cache_dtype})

    def row_count(self, n: int) -> int:
        """Rows of the batch that serves `n` requests."""
        return self.rows or min(MAX_ROWS, 1 << (n - 1).bit_length())

    def unload(self) -> None:
        """Give the memory of the weights back; the model cannot be used afterwards."""
        for part in [*self.weights.values(), *(adapted.weights for adapted in self._adapted.values())]:
            free(part)
        self.weights, self._adapted = {}, {}


def free(part: Any, kept: Any = None) -> None:
    """Delete the arrays of a tree, but for those that `kept` has too."""
    others = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves(part):
        if isinstance(leaf, jax.Array) and id(leaf) not in others and not leaf.is_deleted():
            leaf.delete()
