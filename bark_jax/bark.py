"""`Bark`: the whole way from text to waveform, on one screen. No maths: every step is a call into a stage module.

    text ─ text.encode ─▶ ids ─ semantic ─▶ semantic ids ─ coarse ─▶ 2 codebooks ─ fine ─▶ 8 codebooks ─ codec ─▶ audio

Takes texts, voices, seeds and settings; checks all of them before computing anything; forms batches of a compiled row
count; gives `Speech`. Loading is `load`, which also converts what is not native yet.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bark_jax import adapters as adapter_files
from bark_jax import audio as audio_files
from bark_jax import coarse, codec, fine, hub, library, sampling, semantic, text
from bark_jax import units as unit_files
from bark_jax import weights as checkpoints
from bark_jax.adapters import Adapter, AdapterError
from bark_jax.config import BarkConfig
from bark_jax.flat import Weights
from bark_jax.progress import Progress, reporter
from bark_jax.sampling import Sampling, SamplingError
from bark_jax.speech import BarkWarning, Segment, Speech
from bark_jax.voice import Voice

VoiceLike = None | str | Path | Mapping[str, Any] | Voice
"""What a caller may mean by a voice: none, a name, a path, Suno's dictionary, a `Voice`."""

AdapterLike = str | Path | Adapter | Sequence[str | Path | Adapter]
"""What a caller may mean by an adapter: a file, an `Adapter`, or several of them for different networks."""

T = TypeVar("T")

MAX_ROWS = 16
"""Most rows of one batch unless `rows` says otherwise: about 150 MB of cache each with the small model in float32."""


@dataclass(frozen=True)
class Request:
    """One utterance to make, checked."""

    text: str
    ids: np.ndarray
    """(text_length,) int32."""
    voice: Voice | None
    seed: int
    sampling: Sampling
    adapter: str | None = None


class Bark:
    """A loaded model. Make one with `bark_jax.load`.

    Methods take one input, or a list and give a list; `voice`, `seed`, `sampling` and `adapter` may then be lists too.
    Row i of a batch is what the call alone gives; bit-equal at the same compiled row count, which is the next power of
    two (up to 16), or always `rows` if that was given to `load`.

    Attributes:
      adapters: names for `adapter=`, in the order of loading.
      config: sizes, ids and rates.
      device: the `jax.Device` that holds the weights.
      dtype: "float32" or "bfloat16".
    """

    def __init__(
        self,
        config: BarkConfig,
        tokenizer_json: str,
        weights: Mapping[str, Weights],
        *,
        name: str = "bark",
        dtype: str = "float32",
        rows: int | None = None,
        voices: library.Library | None = None,
        adapters: Mapping[str, Adapter] | None = None,
        units: unit_files.LogMelUnits | None = None,
    ):
        self.config, self.name, self.dtype, self.rows = config, name, dtype, _checked_rows(rows)
        self.device: jax.Device = weights["semantic"].leaves[0].devices().pop()
        if not tokenizer_json.lstrip().startswith("{"):  # what a file holds must never be taken for a path
            raise text.TokenizerError("tokenizer.json is not valid JSON: it must hold one object")
        self._tokenizer = text.load_tokenizer(tokenizer_json, config.semantic)
        self._weights = dict(weights)
        self._codec: codec.Codec = weights["codec"].module
        self._library = voices or library.Library([], config)
        self._units = units
        if units is not None:
            unit_files.check_fit(units.config, config)
        given = list((adapters or {}).values())
        self.adapters = tuple(adapters or {})
        self._adapted = {
            network: adapter_files.attach(self._weights[network], network, given, self.adapters)
            for network in adapter_files.NETWORKS
            if any(network in adapter.networks for adapter in given)
        }
        # XLA's CPU programs convert a whole bfloat16 cache to float32 and back at every step.
        low = dtype == "bfloat16" and self.device.platform != "cpu"
        self._cache_dtype = jnp.bfloat16 if low else jnp.float32

    @classmethod
    def load(cls, model: str | Path = "bark-nano", **options: Any) -> Bark:
        """The same as `bark_jax.load`."""
        return load(model, **options)

    def __repr__(self) -> str:
        return f"Bark({self.name!r}, {self.dtype}, {self.device})"

    # --- the whole way ------------------------------------------------------------------------------------------------

    def generate(
        self,
        text: str | Sequence[str],
        *,
        voice: VoiceLike | Sequence[VoiceLike] = None,
        seed: int | None | Sequence[int | None] = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008 - frozen
        adapter: str | None | Sequence[str | None] = None,
        progress: Progress = None,
    ) -> Any:
        """Speak.

        Args:
          text: a text of 1 to 256 tokens, or a list of them. Whitespace is collapsed, nothing else is changed.
          voice: see `VoiceLike`; names are looked up in the model's folder, in ``BARK_JAX_VOICES``, and on the hub.
          seed: 0 .. 2**64 - 1. None draws one, recorded in `Speech.seed`.
          sampling: temperatures and limits.
          adapter: a name of `adapters`, or None for the model as it is.
          progress: True shows a bar per stage when stderr is a terminal; or a function called with
            (stage, done, total).

        Returns:
          A `Speech`, or a list of them for a list. Warns (`BarkWarning`) where speech is empty or was cut by the
          model's limit.

        Raises:
          TextError, VoiceError, SamplingError, AdapterError: all are `ValueError` and say what is wrong with which
            item, and nothing has been computed. `OSError` if a voice file cannot be read.
        """
        requests = self._requests(text, voice, seed, sampling, adapter)
        speeches: list[Speech] = []
        with reporter(progress) as report, jax.default_device(self.device):
            for group, n_rows in self._groups(requests):
                speeches += self._speak(group, n_rows, report)
        for speech in speeches:
            if len(speech.semantic) == 0:
                warnings.warn(
                    f"The speech of {speech.text[:60]!r} is empty: its first token was the end (seed {speech.seed})",
                    BarkWarning,
                    stacklevel=2,
                )
            elif len(speech.semantic) == self.config.semantic.max_tokens:
                warnings.warn(
                    f"The speech of {speech.text[:60]!r} was cut at the model's limit of "
                    f"{self.config.semantic.max_tokens} semantic tokens (seed {speech.seed}): use shorter texts",
                    BarkWarning,
                    stacklevel=2,
                )
        return speeches if _is_list(text) else speeches[0]

    def _speak(self, group: list[Request], rows: int, report: Callable[[str, int, int], None]) -> list[Speech]:
        timings: dict[str, float] = {}
        with _timed(timings, "semantic"):
            said, ended = self._semantic(group, rows, report)
        with _timed(timings, "coarse"):
            codes = self._coarse(group, said, rows, report)
        with _timed(timings, "fine"):
            codes8 = self._fine(group, codes, rows, report)
        with _timed(timings, "codec"):
            waves = self._decode(codes8, rows)
        config = self.config
        return [
            Speech(
                audio=audio,
                sample_rate=config.codec.sample_rate,
                text=request.text,
                seed=request.seed,
                ended=stop,
                rows=rows,
                semantic=words,
                coarse=two,
                fine=eight,
                model=config.fingerprint,
                segments=(Segment(request.text, 0.0, len(audio) / config.codec.sample_rate, request.seed, stop),),
                timings=timings,
            )
            for request, words, stop, two, eight, audio in zip(group, said, ended, codes, codes8, waves, strict=True)
        ]

    # --- the stages, numpy in and out ---------------------------------------------------------------------------------

    def text_to_semantic(
        self,
        text: str | Sequence[str],
        *,
        voice: VoiceLike | Sequence[VoiceLike] = None,
        seed: int | None | Sequence[int | None] = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008
        adapter: str | None | Sequence[str | None] = None,
        progress: Progress = None,
    ) -> Any:
        """Stage 1: text → semantic ids (n,) int32, 0 to 768 of them at 49.9 per second. Arguments as in `generate`."""
        requests = self._requests(text, voice, seed, sampling, adapter)
        with reporter(progress) as report, jax.default_device(self.device):
            said = [row for group, n in self._groups(requests) for row in self._semantic(group, n, report)[0]]
        return said if _is_list(text) else said[0]

    def semantic_to_coarse(
        self,
        semantic: np.ndarray | Sequence[np.ndarray],
        *,
        voice: VoiceLike | Sequence[VoiceLike] = None,
        seed: int | None | Sequence[int | None] = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008
        adapter: str | None | Sequence[str | None] = None,
        progress: Progress = None,
    ) -> Any:
        """Stage 2: semantic ids (n,), n ≥ 1 → codes (2, F) int32 of the first codebooks, F = floor(n · 75 / 49.9)."""
        rows = _as_list(semantic)
        arrays = [
            _integers(row, f"semantic{where}", (1,), 0, self.config.semantic.vocab_size - 1)
            for row, where in zip(rows, _places(semantic, rows), strict=True)
        ]
        requests = self._requests(_blank(semantic, rows), voice, seed, sampling, adapter, ids=False)
        out: list[np.ndarray] = []
        with reporter(progress) as report, jax.default_device(self.device):
            for (group, n), part in zip(self._groups(requests), self._groups(arrays), strict=True):
                out += self._coarse(group, part[0], n, report)
        return out if _is_list(semantic) else out[0]

    def coarse_to_fine(
        self,
        coarse: np.ndarray | Sequence[np.ndarray],
        *,
        voice: VoiceLike | Sequence[VoiceLike] = None,
        seed: int | None | Sequence[int | None] = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008
        adapter: str | None | Sequence[str | None] = None,
        progress: Progress = None,
    ) -> Any:
        """Stage 3: codes (q, F) of the first q codebooks, F ≥ 1 → codes (8, F) int32 of all.

        q is 2 for what stage 2 gives; 1 to 7 as in Suno's code, the same for all items of a list.
        """
        config = self.config.fine
        rows = _as_list(coarse)
        places = _places(coarse, rows)
        arrays = [
            _integers(row, f"coarse{where}", (None, 1), 0, config.codebook_size - 1)
            for row, where in zip(rows, places, strict=True)
        ]
        given = {len(array) for array in arrays}
        low, high = config.network.n_codes_given, config.n_codebooks - 1
        if len(given) > 1 or not all(low <= q <= high for q in given):
            raise ValueError(
                f"coarse has {sorted(given)} codebooks: it must have {low} to {high}, the same number in every item"
            )
        requests = self._requests(_blank(coarse, rows), voice, seed, sampling, adapter, ids=False)
        out: list[np.ndarray] = []
        with reporter(progress) as report, jax.default_device(self.device):
            for (group, n), part in zip(self._groups(requests), self._groups(arrays), strict=True):
                out += self._fine(group, part[0], n, report)
        return out if _is_list(coarse) else out[0]

    def decode(self, fine: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Codes (q, F), q up to 8 → audio (320 · F,) float32 at 24 kHz, not clipped."""
        rows = _as_list(fine)
        config = self.config.codec
        arrays = []
        for row, where in zip(rows, _places(fine, rows), strict=True):
            codes = _integers(row, f"fine{where}", (None, 0), 0, config.codebook_size - 1)
            if not 1 <= len(codes) <= config.n_codebooks:
                raise ValueError(f"fine{where} has {len(codes)} codebooks: it must have 1 to {config.n_codebooks}")
            arrays.append(codes)
        with jax.default_device(self.device):
            out = [wave for part, n in self._groups(arrays) for wave in self._decode(part, n)]
        return out if _is_list(fine) else out[0]

    def encode(self, audio: np.ndarray | Sequence[np.ndarray], sample_rate: int | None = None) -> Any:
        """Audio → codes (8, F) int32, F = ceil(samples / 320).

        Args:
          audio: (samples,) float, mono, or a list.
          sample_rate: of `audio`, in Hz; resampled to 24 kHz where it differs. None: it is 24 kHz already.

        Raises:
          ValueError: audio that is not mono float, is empty or not finite, or a sample rate out of its range.
        """
        rows = self._clips(audio, sample_rate)
        with jax.default_device(self.device):
            out = [codec.encode(self._codec, row) for row in rows]
        return out if _is_list(audio) else out[0]

    def audio_to_semantic(self, audio: np.ndarray | Sequence[np.ndarray], sample_rate: int | None = None) -> Any:
        """Audio → semantic ids (n,) int32, as the text stage would write them: n = floor(seconds · rate).

        Args:
          audio: (samples,) float, mono, at least one unit long, or a list.
          sample_rate: as for `encode`.

        Raises:
          ValueError: as for `encode`, or audio that is shorter than a unit.
          CheckpointError: the model has no ``units.safetensors``.
        """
        if self._units is None:
            raise checkpoints.CheckpointError(
                f"{self.name} has no units.safetensors, the network that takes semantic ids from audio"
            )
        rows = self._clips(audio, sample_rate)
        with jax.default_device(self.device):
            out = [unit_files.encode(self._units, row) for row in rows]
        return out if _is_list(audio) else out[0]

    def voices(self) -> list[str]:
        """Names of the voices on this machine, for `voice=`."""
        return self._library.names()

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each network, without adapters."""
        return {name: sum(leaf.size for leaf in part.leaves) for name, part in self._weights.items()}

    def bases(self) -> dict[str, str]:
        """Of each network that can have adapters, the `bark_jax.adapters.base_digest` that they must carry."""
        return {name: adapter_files.base_digest(self._weights[name].module) for name in adapter_files.NETWORKS}

    # --- batches ------------------------------------------------------------------------------------------------------

    def _clips(self, audio: Any, sample_rate: int | None) -> list[np.ndarray]:
        """Checked clips at the codec's rate."""
        rate = self.config.codec.sample_rate
        rows = _as_list(audio)
        rows = [_samples(row, f"audio{where}") for row, where in zip(rows, _places(audio, rows), strict=True)]
        if sample_rate is not None and sample_rate != rate:
            rows = [audio_files.resample(row, sample_rate, rate) for row in rows]
        return rows

    def _semantic(
        self, group: list[Request], rows: int, report: Callable[[str, int, int], None]
    ) -> tuple[list[np.ndarray], list[bool]]:
        config = self.config.semantic
        prompts = [semantic.prompt(config, r.ids, None if r.voice is None else r.voice.semantic) for r in group]
        settings = [r.sampling for r in group]
        # A row that only fills the batch stops after one token.
        prompts = _pad(prompts, rows, prompts[0])
        settings = _pad(settings, rows, Sampling(max_duration_s=0.0))
        said, ended = semantic.generate(
            self._network("semantic", group, rows),
            config,
            np.stack(prompts),
            settings,
            self._keys(group, rows, "semantic"),
            cache_dtype=self._cache_dtype,
            progress=lambda done, total: report("semantic", done, total),
        )
        return said[: len(group)], ended[: len(group)]

    def _coarse(
        self,
        group: list[Request],
        said: list[np.ndarray],
        rows: int,
        report: Callable[[str, int, int], None],
    ) -> list[np.ndarray]:
        config = self.config.coarse
        prompts = []
        for request, words in zip(group, said, strict=True):
            history = None if request.voice is None else (request.voice.semantic, request.voice.coarse)
            most = request.sampling.max_coarse_history or config.max_history
            prompts.append(coarse.prompt(config, words, history, most))
        codes = coarse.generate(
            self._network("coarse", group, rows),
            config,
            _pad(prompts, rows, coarse.idle(config)),
            _pad([r.sampling for r in group], rows, Sampling()),
            self._keys(group, rows, "coarse"),
            cache_dtype=self._cache_dtype,
            progress=lambda done, total: report("coarse", done, total),
        )
        return codes[: len(group)]

    def _fine(
        self,
        group: list[Request],
        codes: list[np.ndarray],
        rows: int,
        report: Callable[[str, int, int], None],
    ) -> list[np.ndarray]:
        config = self.config.fine
        states = [
            fine.prompt(config, part, None if r.voice is None else r.voice.fine)
            for r, part in zip(group, codes, strict=True)
        ]
        filled = fine.generate(
            self._network("fine", group, rows),
            config,
            _pad(states, rows, fine.idle(config)),
            _pad([r.sampling for r in group], rows, Sampling()),
            self._keys(group, rows, "fine"),
            n_given=len(codes[0]),
            progress=lambda done, total: report("fine", done, total),
        )
        return filled[: len(group)]

    def _decode(self, codes: list[np.ndarray], rows: int) -> list[np.ndarray]:
        empty = np.zeros((len(codes[0]), 0), np.int32)
        return codec.decode(self._codec, _pad(codes, rows, empty))[: len(codes)]  # type: ignore[return-value]

    def _network(self, name: str, group: list[Request], rows: int) -> Weights:
        """The weights for a batch: as they were loaded, unless an adapter changes this network."""
        if name not in self._adapted:
            return self._weights[name]
        indices = [0 if r.adapter is None else 1 + self.adapters.index(r.adapter) for r in group]
        return self._adapted[name].rows(_pad(indices, rows, 0))

    def _keys(self, group: list[Request], rows: int, stage: str) -> jax.Array:
        return sampling.stage_keys(_pad([r.seed for r in group], rows, 0), stage)

    def _groups(self, items: list[T]) -> Iterator[tuple[list[T], int]]:
        """Split into batches, with the compiled row count of each."""
        most = self.rows or MAX_ROWS
        for start in range(0, len(items), most):
            part = items[start : start + most]
            yield part, self.rows or 1 << (len(part) - 1).bit_length()

    def _requests(
        self, said: Any, voice: Any, seed: Any, settings: Any, adapter: Any, *, ids: bool = True
    ) -> list[Request]:
        """Check everything, item by item, before anything is computed."""
        many = _is_list(said)
        texts = list(said) if many else [said]
        voices = _broadcast(voice, len(texts), many, "voice")
        seeds = _broadcast(seed, len(texts), many, "seed")
        settings = _broadcast(settings, len(texts), many, "sampling")
        adapters = _broadcast(adapter, len(texts), many, "adapter")
        known: dict[int, Voice | None] = {}
        requests = []
        for i, (line, v, s, how, name) in enumerate(zip(texts, voices, seeds, settings, adapters, strict=True)):
            try:
                if id(v) not in known:
                    known[id(v)] = self._library.get(v)
                if not isinstance(how, Sampling):
                    raise SamplingError(f"sampling is {how!r}: it must be a bark_jax.Sampling")
                least, most = self.config.coarse.window, self.config.coarse.max_history
                if how.max_coarse_history is not None and not least <= how.max_coarse_history <= most:
                    raise SamplingError(
                        f"max_coarse_history is {how.max_coarse_history}: it must be {least} to {most}, or None"
                    )
                if name is not None and not (isinstance(name, str) and name in self.adapters):
                    there = f"choose None, {', '.join(self.adapters)}" if self.adapters else "`load` was given none"
                    raise AdapterError(f"adapter is {str(name)[:100]!r}: {there}")
                length = self.config.semantic.text_length
                encoded = (
                    text.encode(self._tokenizer, self.config.semantic, line) if ids else np.zeros(length, np.int32)
                )
                drawn = sampling.new_seed() if s is None else sampling.check_seed(s)
            except ValueError as error:
                if many and not isinstance(error, UnicodeError):  # that one takes other arguments
                    raise type(error)(f"item {i}: {error}") from error
                raise
            requests.append(Request(line, encoded, known[id(v)], drawn, how, name))
        return requests


def load(
    model: str | Path = "bark-nano",
    *,
    dtype: str | None = None,
    device: str | jax.Device | None = None,
    rows: int | None = None,
    adapters: Mapping[str, AdapterLike] | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    sizes: Mapping[str, str] | None = None,
) -> Bark:
    """Load a model.

    Args:
      model: a native folder (from ``python -m convert``); a folder of Suno's ``.pt`` files, a Hugging Face Bark folder
        or a hub id such as ``suno/bark``, which are converted once, into the cache (needs ``bark-jax[convert]``).
      dtype: of the weights, "float32" or "bfloat16"; None is bfloat16 on GPU and TPU, float32 on CPU.
      device: "cpu", "gpu", "tpu", a `jax.Device`, or None for JAX's default, the best there is.
      rows: compile for exactly this many rows and fill batches up to it; results are then bit-equal whatever the number
        of texts. None: the next power of two, at most 16.
      adapters: {name: file} of what was trained on this model, for ``generate(..., adapter=name)``; a list of files,
        one per network, makes one adapter. Loading them costs every row a little, whether it uses one or not.
      revision: branch, tag or commit of a hub id.
      local_files_only: never use the network.
      sizes: {"text" | "coarse" | "fine": "small" | "large"} chooses among Suno's ``.pt`` files where both are there.

    Raises:
      HubError: the model is nowhere, or cannot be fetched (an `OSError`).
      CheckpointError, ConfigError, ConversionError: the files are not a Bark model (all are `ValueError`).
      AdapterError: an adapter is damaged, or for another model (a `ValueError`).
    """
    rows = _checked_rows(rows)
    place = _device(device)
    dtype = dtype or ("float32" if place.platform == "cpu" else "bfloat16")
    if not isinstance(dtype, str) or dtype not in checkpoints.DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(checkpoints.DTYPES)}")
    folder, source = library.locate(model, revision=revision, local_files_only=local_files_only, sizes=sizes)
    config, tokenizer_json, weights = checkpoints.read(folder, dtype=dtype, device=place)
    repository = model if isinstance(model, str) and hub.is_hub_id(model) and not Path(model).is_dir() else None
    voices = library.Library([folder, source], config, repository=repository, local_files_only=local_files_only)
    units = folder / "units.safetensors"
    return Bark(
        config,
        tokenizer_json,
        weights,
        name=str(model),
        dtype=dtype,
        rows=rows,
        voices=voices,
        adapters=adapter_files.gather({} if adapters is None else adapters, config),
        units=unit_files.load(units, device=place) if units.is_file() else None,
    )


def _device(device: str | jax.Device | None) -> jax.Device:
    if device is None:
        device = jax.config.jax_default_device  # pyrefly: ignore[missing-attribute]
        if device is None:
            return jax.local_devices()[0]
    if isinstance(device, jax.Device):
        return device
    if device not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"device is {device!r}: choose 'cpu', 'gpu', 'tpu', a jax.Device, or None")
    try:
        return jax.devices(device)[0]
    except RuntimeError:
        there = ", ".join(sorted({d.platform for d in jax.devices()} | {"cpu"}))
        raise ValueError(f"device is {device!r}, but JAX finds none: there is {there}") from None


def _checked_rows(rows: Any) -> int | None:
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1):
        raise ValueError(f"rows is {rows!r}: it must be an integer of 1 or more, or None")
    return None if rows is None else int(rows)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - start


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _as_list(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _places(value: Any, rows: list[Any]) -> list[str]:
    return [f"[{i}]" for i in range(len(rows))] if _is_list(value) else [""]


def _blank(value: Any, rows: list[Any]) -> Any:
    """As many empty texts as there are inputs: stages after the first have none."""
    return [""] * len(rows) if _is_list(value) else ""


def _broadcast(value: Any, n: int, many: bool, name: str) -> list[Any]:
    if not _is_list(value):
        return [value] * n
    if not many:
        raise ValueError(f"{name} is a list of {len(value)}, but there is one input: lists go together")
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} items for {n} inputs: give one for all, or one for each")
    return list(value)


def _pad(items: Sequence[T], rows: int, filler: T) -> list[T]:
    return [*items, *[filler] * (rows - len(items))]


def _integers(value: Any, name: str, shape: tuple[int | None, ...], low: int, high: int) -> np.ndarray:
    """`value` as int32, or a ValueError; `shape` gives the rank and, where not None, the least size of an axis."""
    array = _array(value, name)
    if array.ndim != len(shape) or not np.issubdtype(array.dtype, np.integer):
        axes = "(n,)" if len(shape) == 1 else "(codebooks, frames)"
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}: it must be integers {axes}")
    if any(least is not None and size < least for size, least in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name} has shape {array.shape}: it is empty, and must have at least 1")
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"{name} has values {array.min()} to {array.max()}: they must be {low} to {high}")
    return array.astype(np.int32)


def _samples(value: Any, name: str) -> np.ndarray:
    """`value` as mono float audio, or a ValueError."""
    array = _array(value, name)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}: it must be mono float samples (n,), -1 to 1")
    if not len(array):
        raise ValueError(f"{name} is empty: it must hold at least 1 sample")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN, infinity or values beyond float32: all samples must be finite")
    return array


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever an object's __array__ raises
        raise ValueError(f"{name} cannot be made an array: {error}") from None
