"""`Bark`: the whole way from text to waveform. No maths: every step is a call into a stage.

    text ─ text.encode ─▶ ids ─ semantic ─▶ semantic ids ─ coarse ─▶ 2 codebooks ─ fine ─▶ 8 codebooks ─ codec ─▶ audio

Takes texts, voices, seeds and settings; gives `Speech`, or `Chunk`s of it. `requests` checks all of them before
anything is computed, `engine` runs the stages in batches, `streaming` speaks what takes several calls or is heard while
it is made. Loading is `load`, which also converts what is not native yet.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import hashlib
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bark_jax import adapters as adapter_files
from bark_jax import audio as audio_files
from bark_jax import clips, codec, compilation, hub, library, memory, native, placement, streaming, text, tokens
from bark_jax import units as unit_files
from bark_jax import weights as checkpoints
from bark_jax.adapters import Adapter
from bark_jax.config import BarkConfig
from bark_jax.engine import Engine, Report, free
from bark_jax.flat import Weights, host
from bark_jax.parallel import Made, Team
from bark_jax.placement import Place
from bark_jax.progress import Progress, reporter
from bark_jax.progress import check as check_progress
from bark_jax.requests import (
    Intake,
    Request,
    Script,
    VoiceLike,
    as_list,
    blank,
    integers,
    is_cast,
    is_list,
    places,
    samples,
)
from bark_jax.rows import NARROWER
from bark_jax.settings import LATENCIES, Sampling
from bark_jax.speech import BarkWarning, Segment, Speech
from bark_jax.splitting import Split
from bark_jax.streaming import Chunk
from bark_jax.text import TextError
from bark_jax.voice import Voice

AdapterLike = str | Path | Adapter | Sequence[str | Path | Adapter]
"""What a caller may mean by an adapter: a file, an `Adapter`, or several of them for different networks."""

CLIP_S = (1.1, 15.0)
"""Seconds of a clip that becomes a voice: below 1.01 s lengths no longer agree (`Voice.check`), and no call of Bark's
is longer than 15.4 s."""
SILENT = 1e-3
"""Root mean square of a recording, of full scale, below which there is nobody to hear (-60 dB)."""


class Bark:
    """A loaded model. Make one with `bark_jax.load`.

    Methods take one input, or a list and give a list; `voice`, `seed`, `sampling` and `adapter` may then be lists too.
    Item i of a list is what the call alone gives: bit-equal if `load` was given `rows`, the row count of every batch.
    Otherwise that is the next power of two (up to 16), and falls as speeches end, and other programs may round the last
    bits of logits otherwise.

    Attributes:
      adapters: names for `adapter=`, in the order of loading.
      config: sizes, ids and rates.
      device: the `jax.Device` that computes and, unless `offload`, holds the weights; of several the first.
      dtype: "float32", "bfloat16" or "int8".
      offload: whether weights are on the device only while their stage runs.
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
        units: unit_files.Network | None = None,
        places: Sequence[Place] | None = None,
        offload: bool = False,
    ):
        self.config, self.name, self.dtype, self.rows = config, name, dtype, _checked_rows(rows)
        if not tokenizer_json.lstrip().startswith("{"):  # what a file holds must never be taken for a path
            raise text.TokenizerError("tokenizer.json is not valid JSON: it must hold one object")
        tokenizer = text.load_tokenizer(tokenizer_json, config.semantic)
        self._library = voices or library.Library([], config)
        engine = Engine(
            config,
            weights,
            name=name,
            dtype=dtype,
            rows=self.rows,
            adapters=adapters or {},
            place=placement.first(places) if places else None,
            offload=offload,
        )
        self._team = Team(engine, places or [engine.place])
        self.device, self.offload, self.adapters = engine.device, offload, engine.adapters
        self._intake = Intake(config, tokenizer, self._library, self.adapters, draws=not self._team.shared)
        self._units = units
        if units is not None:
            unit_files.check_fit(units.config, config)

    @classmethod
    def load(cls, model: str | Path = "bark-nano", **options: Any) -> Bark:
        """The same as `bark_jax.load`."""
        return load(model, **options)

    def _with_config(self, config: BarkConfig) -> Bark:
        """The same weights with other windows or limits."""
        other = copy.copy(self)
        other.config = config
        other._team, other._intake = self._team.configured(config), copy.copy(self._intake)
        other._intake.config = config
        return other

    @property
    def _engine(self) -> Engine:
        return self._team.first

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """Where lists of inputs are computed; a single one, and whatever is streamed, on the first of this process."""
        return tuple(device for place in self._team.places for device in place.devices)

    def __repr__(self) -> str:
        more = f" and {len(self.devices) - 1} more" if len(self.devices) > 1 else ""
        return f"Bark({self.name!r}, {self.dtype}, {self.device}{more})"

    # --- the whole way ------------------------------------------------------------------------------------------------

    def generate(
        self,
        text: str | Sequence[str],
        *,
        voice: VoiceLike | Sequence[VoiceLike] = None,
        seed: int | None | Sequence[int | None] = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008 - frozen
        adapter: str | None | Sequence[str | None] = None,
        split: bool | Split = True,
        progress: Progress = None,
    ) -> Any:
        """Speak.

        Args:
          text: any length, or a list of them; of white space only empty lines count, nothing else is changed. A text
            fits one call if it has at most 256 tokens and is predicted to last at most 13 s. A longer one is spoken
            part by part, in one voice, and joined; so is one with ``[pause]``, ``[pause 0.5s]`` or
            ``[pause 300ms]`` in it.
          voice: see `VoiceLike`; names are looked up in the model's folder, in ``BARK_JAX_VOICES``, and on the hub. A
            cast, {speaker: voice}, makes the text a script: a line that begins with a speaker's name and a colon, and
            the lines after it, are spoken by that voice.
          seed: 0 .. 2**64 - 1. None draws one, recorded in `Speech.seed`.
          sampling: temperatures and limits.
          adapter: a name of `adapters`, or None for the model as it is.
          split: how a longer text is spoken, see `Split`; False forces one call, of which nothing is taken for a tag.
          progress: True shows a bar per stage when stderr is a terminal; or a function called with
            (stage, done, total). A longer text has its stages again and again, and a stage "parts".

        Returns:
          A `Speech`, or a list of them for a list. Warns (`BarkWarning`) where speech is empty or was cut by the
          model's limit, of characters that the model's vocabulary lacks, and of what looks like a speaker that the cast
          has not.

        Raises:
          TextError, VoiceError, SamplingError, AdapterError: all are `ValueError` and say what is wrong with which
            item, and nothing has been computed. `OSError` if a voice file cannot be read.
        """
        scripts = self._intake.scripts(text, voice, seed, sampling, adapter, split)
        if not scripts:
            return []
        with reporter(progress) as report:
            whole = [i for i, script in enumerate(scripts) if script.plan.whole]
            once = self._speak([scripts[i].requests[0] for i in whole], report)
            speeches = dict(zip(whole, once, strict=True))
            long = [i for i in range(len(scripts)) if i not in speeches]
            speeches |= zip(long, self._perform([scripts[i] for i in long], report), strict=True)
        return [speeches[i] for i in range(len(scripts))] if is_list(text) else speeches[0]

    def stream(
        self,
        text: str,
        *,
        voice: VoiceLike = None,
        seed: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        adapter: str | None = None,
        split: bool | Split = True,
        progress: Progress = None,
        latency: str = "exact",
    ) -> Generator[Chunk, None, None]:
        """Speak one text, handing out audio as it becomes final: an iterator of `Chunk`s.

        Joined, they are the audio of `generate` with the same arguments (tokens equal; samples within 1e-5, as the
        codec's pieces may be others). The text is split at once, a second for 100,000 characters; nothing is spoken
        before the first chunk is asked for, nor after the iterator is closed but for the dispatch that is under way.

        Args:
          latency: "exact", or "low": audio of a part that is heard while it is made is handed out when the fine codes
            0.1 s ahead of it are known, and not all that belong to its windows. The codes differ from `generate`'s.

        The other arguments, and the errors (raised at once), are those of `generate`.
        """
        self._check_stream(text, progress, latency)
        [script] = self._intake.scripts(text, voice, seed, sampling, adapter, split)
        return self._chunks(script, progress, latency == "low")

    def _check_stream(self, text: str, progress: Progress = None, latency: str = "exact", **_: Any) -> None:
        if not isinstance(text, str):
            raise TextError(f"text is a {type(text).__name__}: a stream speaks one text, a str")
        if latency not in LATENCIES:
            raise ValueError(f"latency is {latency!r}: choose one of {', '.join(LATENCIES)}")
        check_progress(progress)
        self._engine.check_loaded()

    def _chunks(self, script: Script, progress: Progress, low: bool) -> Generator[Chunk, None, None]:
        with reporter(progress) as report:
            events = self._events(script, report, low)
            try:
                while True:
                    with jax.default_device(self.device):  # not while the caller has the word
                        event = next(events, None)
                    if event is None:
                        return
                    if isinstance(event, Chunk):
                        yield event
            finally:
                events.close()

    def astream(self, text: str, **options: Any) -> AsyncGenerator[Chunk, None]:
        """`stream` for ``async for``: the same chunks and arguments, computed in a thread of their own.

        The text is split there too, so errors that are about what it says come when the first chunk is asked for.
        """
        self._check_stream(text, **options)
        return self._in_a_thread(partial(self.stream, text, **options))

    async def _in_a_thread(self, begin: Callable[[], Generator[Chunk, None, None]]) -> AsyncGenerator[Chunk, None]:
        chunks = await asyncio.to_thread(begin)
        step: asyncio.Future[Chunk | None] | None = None
        try:
            while True:
                step = asyncio.ensure_future(asyncio.to_thread(next, chunks, None))
                chunk = await asyncio.shield(step)
                if chunk is None:
                    return
                yield chunk
        finally:
            try:
                while step is not None and not step.done():  # cancelled meanwhile: the thread is in the generator
                    await asyncio.wait([step])
            finally:
                if step is None or step.done():
                    chunks.close()

    def _events(
        self, script: Script, report: Report, low: bool, begin: streaming.Progress | None = None
    ) -> Generator[streaming.Event, None, None]:
        """What happens while a text is spoken; warns of parts that a listener would miss something of."""
        for event in streaming.perform(self._engine, script, report, low=low, begin=begin):
            if isinstance(event, streaming.Spoken):
                self._warn_of(event, alone=script.plan.whole)
            yield event

    def _perform(self, scripts: list[Script], report: Report) -> list[Speech]:
        """Texts of several parts, each joined."""
        config, speeches = self.config, []
        for script, (audio, rows, took, *parts) in zip(
            scripts, self._team.each(scripts, _perform, report), strict=True
        ):
            said = [_unpacked(script, parts[i : i + 4]) for i in range(0, len(parts), 4)]
            for spoken in said:
                self._warn_of(spoken, alone=script.plan.whole)
            last = said[-1]
            speeches.append(
                Speech(
                    audio=audio,
                    sample_rate=config.codec.sample_rate,
                    text=script.text,
                    seed=script.requests[0].seed,
                    ended=all(spoken.ended for spoken in said),
                    rows=int(rows),
                    semantic=np.concatenate([spoken.semantic for spoken in said]),
                    coarse=np.concatenate([spoken.coarse for spoken in said], axis=1),
                    fine=np.concatenate([spoken.fine for spoken in said], axis=1),
                    model=config.fingerprint,
                    segments=tuple(self._segment(spoken) for spoken in said),
                    timings={"parts": float(took)},
                    last=(last.semantic, last.coarse, last.fine),
                )
            )
        return speeches

    def _segment(self, spoken: streaming.Spoken) -> Segment:
        rate = self.config.codec.sample_rate
        return Segment(
            spoken.request.text.strip(),
            spoken.start / rate,
            spoken.end / rate,
            spoken.request.seed,
            spoken.ended,
            spoken.attempts,
        )

    def _warn_of(self, said: Speech | streaming.Spoken, *, alone: bool = False) -> None:
        """Tell what a listener would miss of one call; `alone`: of all that there is to say, cut as it was asked."""
        n, most = len(said.semantic), self.config.semantic.max_tokens
        what, seed = (said.text, said.seed) if isinstance(said, Speech) else (said.request.text, said.request.seed)
        if n == 0:
            message = f"The speech of {what[:60]!r} is empty: its first token was the end (seed {seed})"
        elif n == most and not said.ended:
            message = (
                f"The speech of {what[:60]!r} was cut at the model's limit of {most} semantic tokens (seed {seed}): "
                "use shorter texts"
            )
        elif not (isinstance(said, Speech) or said.ended or alone):
            limit = said.request.sampling.max_duration_s
            message = (
                f"The part {what[:60]!r} was cut after {n / self.config.semantic.rate_hz:.1f} s (max_duration_s is "
                f"{limit}, seed {seed}): that is the limit of every part of a longer text; for shorter parts use "
                "Split(max_duration_s=...)"
            )
        else:
            return
        warnings.warn(message, BarkWarning, stacklevel=4)

    def _speak(self, requests: list[Request], report: Report) -> list[Speech]:
        """Texts of one call each."""
        config, speeches = self.config, []
        for request, (words, stop, two, eight, audio, rows, took) in zip(
            requests, self._team.each(requests, _speak, report), strict=True
        ):
            ended, duration = bool(stop), len(audio) / config.codec.sample_rate
            speech = Speech(
                audio=audio,
                sample_rate=config.codec.sample_rate,
                text=request.text,
                seed=request.seed,
                ended=ended,
                rows=int(rows),
                semantic=words,
                coarse=two,
                fine=eight,
                model=config.fingerprint,
                segments=(Segment(request.text, 0.0, duration, request.seed, ended),),
                timings=dict(zip(checkpoints.NETWORKS, took.tolist(), strict=True)),
            )
            self._warn_of(speech)
            speeches.append(speech)
        return speeches

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
        requests = self._intake.requests(text, voice, seed, sampling, adapter)
        if not requests:
            return []
        with reporter(progress) as report:
            said = self._each(requests, lambda engine, some, report: engine.to_semantic(some, report)[0], report)
        return said if is_list(text) else said[0]

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
        rows = as_list(semantic)
        arrays = [
            integers(row, f"semantic{where}", (1,), 0, self.config.semantic.vocab_size - 1)
            for row, where in zip(rows, places(semantic, rows), strict=True)
        ]
        requests = self._intake.requests(blank(semantic, rows), voice, seed, sampling, adapter, ids=False)
        if not requests:
            return []
        with reporter(progress) as report:
            pairs = list(zip(requests, arrays, strict=True))
            out = self._each(pairs, lambda engine, some, report: engine.to_coarse(*_columns(some), report), report)
        return out if is_list(semantic) else out[0]

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
        rows = as_list(coarse)
        arrays = [
            integers(row, f"coarse{where}", (None, 1), 0, config.codebook_size - 1)
            for row, where in zip(rows, places(coarse, rows), strict=True)
        ]
        given = {len(array) for array in arrays}
        low, high = config.network.n_codes_given, config.n_codebooks - 1
        if len(given) > 1 or not all(low <= q <= high for q in given):
            raise ValueError(
                f"coarse has {sorted(given)} codebooks: it must have {low} to {high}, the same number in every item"
            )
        requests = self._intake.requests(blank(coarse, rows), voice, seed, sampling, adapter, ids=False)
        if not requests:
            return []
        with reporter(progress) as report:
            pairs = list(zip(requests, arrays, strict=True))
            out = self._each(pairs, lambda engine, some, report: engine.to_fine(*_columns(some), report), report)
        return out if is_list(coarse) else out[0]

    def decode(self, fine: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Codes (q, F), q up to 8 → audio (320 · F,) float32 at 24 kHz, not clipped."""
        rows = as_list(fine)
        config = self.config.codec
        arrays = []
        for row, where in zip(rows, places(fine, rows), strict=True):
            codes = integers(row, f"fine{where}", (None, 0), 0, config.codebook_size - 1)
            if not 1 <= len(codes) <= config.n_codebooks:
                raise ValueError(f"fine{where} has {len(codes)} codebooks: it must have 1 to {config.n_codebooks}")
            arrays.append(codes)
        out = self._each(arrays, lambda engine, some, report: engine.decode(some), _quietly)
        return out if is_list(fine) else out[0]

    def encode(self, audio: np.ndarray | Sequence[np.ndarray], sample_rate: int | None = None) -> Any:
        """Audio → codes (8, F) int32, F = ceil(samples / 320).

        Args:
          audio: (samples,) float, mono, or a list.
          sample_rate: of `audio`, in Hz; resampled to 24 kHz where it differs. None: it is 24 kHz already.

        Raises:
          ValueError: audio that is not mono float, is empty or not finite, or a sample rate out of its range.
        """
        rows = self._clips(audio, sample_rate, self.config.codec.sample_rate)
        with jax.default_device(self.device), self._engine.placed("codec") as weights:
            out = [codec.encode(weights.module, row) for row in rows]
        return out if is_list(audio) else out[0]

    def audio_to_semantic(self, audio: np.ndarray | Sequence[np.ndarray], sample_rate: int | None = None) -> Any:
        """Audio → semantic ids (n,) int32, as the text stage would write them: floor(seconds · rate), or one less.

        bark-nano brings the network; for Bark itself ``python -m convert.units`` makes it of HuBERT and a quantizer.

        Args:
          audio: (samples,) float, mono, at least one unit long, or a list.
          sample_rate: as for `encode`.

        Raises:
          ValueError: as for `encode`, or audio that is shorter than a unit.
          CheckpointError: the model has no ``units.safetensors``, or was unloaded.
        """
        self._engine.check_loaded()
        if self._units is None:
            raise checkpoints.CheckpointError(
                f"{self.name} has no units.safetensors, the network that takes semantic ids from audio"
            )
        rows = self._clips(audio, sample_rate, self._units.config.sample_rate)
        with jax.default_device(self.device):
            out = [unit_files.encode(self._units, row) for row in rows]
        return out if is_list(audio) else out[0]

    def check(
        self,
        text: str | Sequence[str],
        *,
        voice: VoiceLike | Sequence[VoiceLike] = None,
        seed: int | None | Sequence[int | None] = None,
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008
        adapter: str | None | Sequence[str | None] = None,
        split: bool | Split = True,
    ) -> None:
        """What `generate` checks before it computes anything: raises what it would raise, and does nothing else."""
        self._intake.scripts(text, voice, seed, sampling, adapter, split)

    def digest(self) -> str:
        """64 hexadecimal digits of the networks with their adapters: SHA-256 over the shape, the type and 4,096 values
        of every tensor. The same weights in another type have another one.
        """
        digest = hashlib.sha256()
        for name in sorted(self.parameters()):
            for leaf in self._engine.network(name).leaves:
                flat = leaf.reshape(-1)
                some = host(flat[:: max(1, flat.size // 4096)])
                digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
                digest.update(some.tobytes())
        return digest.hexdigest()

    def about(
        self,
        speech: Speech,
        *,
        voice: VoiceLike = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        adapter: str | None = None,
    ) -> dict[str, Any]:
        """Where a speech comes from, for `Speech.save`, or whatever keeps such things: a dictionary for JSON.

        It says that this is synthetic speech, of which model and weights (`digest`), in which voice, with which seed,
        rows, and settings, of which text (its SHA-256, not the text), and how long.

        Args:
          voice, sampling, adapter: what `generate` was told. A voice that has no name is called by the SHA-256 of its
            semantic ids and codes.
        """
        from bark_jax import __version__  # the door imports this module

        with jax.default_device(self.device):
            weights = self.digest()
        return {
            "synthetic": True,
            "made_by": f"bark_jax {__version__}",
            "model": self.name,
            "weights": weights,
            "dtype": self.dtype,
            "voice": _called(voice),
            "adapter": adapter,
            "seed": speech.seed,
            "rows": speech.rows,
            "sampling": dataclasses.asdict(sampling),
            "text_sha256": hashlib.sha256(speech.text.encode("utf-8", "surrogatepass")).hexdigest(),
            "samples": len(speech.audio),
            "sample_rate": speech.sample_rate,
            "ended": speech.ended,
        }

    def count_tokens(self, text: str) -> int:
        """How many of its tokens the model reads a text as; one call takes ``config.semantic.text_length``.

        Raises:
          ValueError: not a text, or a lone surrogate in it.
        """
        return self._intake.count_tokens(text)

    def clone(
        self, audio: str | Path | np.ndarray, sample_rate: int | None = None, *, consent: str | None = None
    ) -> Voice:
        """A voice prompt from a recording of somebody: semantic ids and EnCodec codes of it, of lengths that agree.

        Five to ten seconds of one speaker are best, without noise or music, ending where a sentence ends: speech goes
        on from there. Clone voices of people who agreed to it alone.

        Args:
          audio: a file (wav, flac, ogg, mp3, ...), or (samples,) float, mono. 1.1 to 15 seconds.
          sample_rate: of an array, as for `encode`.
          consent: who agreed, kept with the voice (`bark_jax.voice.agreed` adds the date and the recording's digest).

        Raises:
          ValueError: a clip that is too short, too long or silent, or as for `encode`.
            What is clipped, noise or music is warned of (`BarkWarning`).
          CheckpointError: the model has no ``units.safetensors``, or was unloaded.
          OSError: a file cannot be read.
        """
        config, rate = self.config, self.config.codec.sample_rate
        if isinstance(audio, str | Path):
            if sample_rate is not None:
                raise ValueError(f"sample_rate is {sample_rate} and audio a file: files have their own, leave it out")
            audio = audio_files.read(audio, rate)
        else:
            [audio] = self._clips([audio], sample_rate, rate)
        least, most = CLIP_S
        seconds = len(audio) / rate
        if not least <= seconds <= most:
            raise ValueError(
                f"the clip lasts {seconds:.2f} s: a voice takes {least:g} to {most:g} s of speech, 5 to 10 are best"
            )
        if np.sqrt(np.mean(np.square(audio))) < SILENT:
            raise ValueError(f"the clip is silent: its root mean square is below {SILENT:g} of full scale")
        if (fault := clips.fault(audio, rate)) is not None:
            warnings.warn(f"the clip is a poor prompt: {fault}", BarkWarning, stacklevel=2)
        ids, codes = self.audio_to_semantic(audio), self.encode(audio)
        ids, codes = tokens.aligned(config.coarse, ids, codes)
        voice = Voice(ids, codes[: config.coarse.n_codebooks], codes, model=config.fingerprint, consent=consent)
        voice.check(config)
        return voice

    def warmup(self, rows: int | Sequence[int] = 1, *, filtered: bool = False) -> float:
        """Compile what speaking needs, so that the first request does not wait for it.

        Programs are kept between processes too, see `bark_jax.compilation`: then this only reads them.

        Args:
          rows: numbers of texts that later calls will have; with ``load(rows=...)`` all numbers are one.
          filtered: for requests with `top_k` or `top_p`, which have programs of their own.

        Returns:
          Seconds that it took.

        Raises:
          ValueError: a number that is not an integer of 1 or more.
        """
        start = time.perf_counter()
        config = self.config
        ids = np.zeros(config.semantic.text_length, np.int32)
        # The longest has a second coarse window, which goes on from the cache of the first. The others end earlier, so
        # that a batch becomes as narrow as it will.
        window_s = config.coarse.window / config.coarse.n_codebooks / config.codec.frame_rate
        past = np.zeros(int(2 * config.semantic.rate_hz), np.int32)
        codes = np.zeros((config.fine.n_codebooks, tokens.n_frames(config.coarse, len(past))), np.int32)
        voice = Voice(past, codes[: config.coarse.n_codebooks], codes, model=config.fingerprint)
        for n in as_list(rows):
            count = _checked_rows(n) or 1
            requests, copies = [], min(count, len(self._team.places))
            for i in range(count):
                row = i // copies  # of its copy's batch
                seconds = window_s * (2.5 if row == 0 else 1.5 if row < NARROWER else 0.5)
                how = Sampling(max_duration_s=seconds, allow_early_stop=False, top_k=1 if filtered else None)
                requests.append(Request("", ids, None, i, how))
            self._team.each(requests, _speak, _quietly)
            pairs = [(dataclasses.replace(r, voice=voice), past[:20]) for r in requests]
            self._each(pairs, lambda engine, some, report: engine.to_coarse(*_columns(some), report), _quietly)
        return time.perf_counter() - start

    def unload(self) -> None:
        """Give the memory of the weights back; the model cannot be used afterwards."""
        for engine in self._team.engines:
            engine.unload()
        free(self._units)
        self._units = None

    def voices(self) -> list[str]:
        """Names of the voices on this machine, for `voice=`."""
        return self._library.names()

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each network, without adapters."""
        return {
            name: sum(leaf.size for leaf in checkpoints.names(part.module).values())
            for name, part in self._engine.weights.items()
        }

    def bases(self) -> dict[str, str]:
        """Of each network that can have adapters, the `bark_jax.adapters.base_digest` that they must carry."""
        self._engine.check_loaded()
        return {name: adapter_files.base_digest(self._engine.weights[name].module) for name in adapter_files.NETWORKS}

    # --- batches ------------------------------------------------------------------------------------------------------

    def _each(
        self, items: list[Any], work: Callable[[Engine, list[Any], Report], list[np.ndarray]], report: Report
    ) -> Any:
        """One array of each item, computed by all copies of the engine."""

        def each(engine: Engine, some: list[Any], report: Report) -> list[Made]:
            return [(array,) for array in work(engine, some, report)]

        return [array for (array,) in self._team.each(items, each, report)]

    def _clips(self, audio: Any, sample_rate: int | None, rate: int) -> list[np.ndarray]:
        """Checked clips at `rate`; without a rate of their own they have the codec's."""
        rows = as_list(audio)
        rows = [samples(row, f"audio{where}") for row, where in zip(rows, places(audio, rows), strict=True)]
        own = self.config.codec.sample_rate if sample_rate is None else sample_rate
        return rows if own == rate else [audio_files.resample(row, own, rate) for row in rows]


def load(
    model: str | Path = "bark-nano",
    *,
    dtype: str | None = None,
    device: str | jax.Device | None = None,
    mesh: jax.sharding.Mesh | None = None,
    rows: int | None = None,
    adapters: Mapping[str, AdapterLike] | None = None,
    offload: bool = False,
    revision: str | None = None,
    local_files_only: bool = False,
    sizes: Mapping[str, str] | None = None,
) -> Bark:
    """Load a model.

    Args:
      model: a native folder (from ``python -m convert``); a folder of Suno's ``.pt`` files, a Hugging Face Bark folder
        or a hub id such as ``suno/bark``, which are converted once, into the cache (needs ``bark-jax[convert]``).
      dtype: of the weights, "float32", "bfloat16" or "int8" (a quarter of float32's memory, on CPUs the fastest;
        other speech than float32's); None is bfloat16 on GPU and TPU, float32 on CPU.
      device: "cpu", "gpu", "tpu", or None for JAX's default, the best there is. Lists are dealt out to all devices of
        that kind that this process has, each with the weights, from the second on when they are first needed. A
        `jax.Device`: that one alone.
      mesh: instead of `device`, for these devices. Its axis "data" counts copies of the model; the devices along its
        axis "model" share one: matrices of the GPTs are divided among them, by their rows, and everything else is on
        each. Either axis may be missing. With `jax.distributed` it may have devices of other processes: all of them
        must then make the same calls, with seeds, and get all results.
      rows: compile for exactly this many rows and fill batches up to it; results are then bit-equal whatever the number
        of texts. None: the next power of two, at most 16.
      adapters: {name: file} of what was trained on this model, for ``generate(..., adapter=name)``; a list of files,
        one per network, makes one adapter. Loading them costs every row a little, whether it uses one or not.
      offload: keep weights in the host's memory and bring each network to the device for the time of its stage: less
        memory there (of the large model the largest stage instead of all), for a copy per stage and call. The network
        of ``units.safetensors`` stays.
      revision: branch, tag or commit of a hub id.
      local_files_only: never use the network.
      sizes: {"text" | "coarse" | "fine": "small" | "large"} chooses among Suno's ``.pt`` files where both are there.

    Raises:
      ValueError: a device or a mesh that is not there, or both; any other argument that is wrong.
      HubError: the model is nowhere, or cannot be fetched (an `OSError`).
      CheckpointError, ConfigError, ConversionError: the files are not a Bark model (all are `ValueError`).
      AdapterError: an adapter is damaged, or for another model (a `ValueError`).
      MemoryError: the device has less memory than the weights take; nothing has been loaded.
    """
    rows = _checked_rows(rows)
    there = placement.places(device, mesh)
    first = placement.first(there)
    dtype = dtype or ("float32" if first.devices[0].platform == "cpu" else "bfloat16")
    if not isinstance(dtype, str) or dtype not in checkpoints.CHOICES:
        raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(checkpoints.CHOICES)}")
    folder, source = library.locate(model, revision=revision, local_files_only=local_files_only, sizes=sizes)
    there = memory.fitting(folder, dtype, there, offload=offload, chosen=mesh is not None)
    compilation.keep()
    if first.devices[0].platform == "cpu":
        native.prepare()
    whole = len(first.devices) == 1
    config, tokenizer_json, weights = checkpoints.read(
        folder, dtype=dtype, device=first.devices[0], host=offload or not whole
    )
    if not (offload or whole):
        weights = {name: first.put(name, part) for name, part in weights.items()}
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
        units=unit_files.load(units, device=first.local) if units.is_file() else None,
        places=there,
        offload=offload,
    )


def _checked_rows(rows: Any) -> int | None:
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int | np.integer) or rows < 1):
        raise ValueError(f"rows is {rows!r}: it must be an integer of 1 or more, or None")
    return None if rows is None else int(rows)


def _called(voice: Any) -> Any:
    """A voice's name for JSON; of a cast, each speaker's."""
    if voice is None or isinstance(voice, str | Path):
        return None if voice is None else str(voice)
    if is_cast(voice):
        return {speaker: _called(one) for speaker, one in voice.items()}
    known = voice if isinstance(voice, Voice) else Voice.from_dict(voice)
    digest = hashlib.sha256()
    for array in (known.semantic, known.coarse, known.fine):
        digest.update(np.ascontiguousarray(array, np.int32).tobytes())
    return f"sha256 {digest.hexdigest()}"


def _columns(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def _speak(engine: Engine, requests: list[Request], report: Report) -> list[Made]:
    """All stages: semantic ids, whether speech ended by itself, coarse and fine codes, audio; then the row count, and
    the seconds that each stage took for all of the requests.
    """
    timings: list[float] = []
    with _timed(timings):
        said, ended = engine.to_semantic(requests, report)
    with _timed(timings):
        codes = engine.to_coarse(requests, said, report)
    with _timed(timings):
        codes8 = engine.to_fine(requests, codes, report)
    with _timed(timings):
        waves = engine.decode(codes8)
    about = np.array(engine.row_count(len(requests))), np.array(timings)
    made = zip(said, ended, codes, codes8, waves, strict=True)
    return [(words, np.array(stop), two, eight, audio, *about) for words, stop, two, eight, audio in made]


def _perform(engine: Engine, scripts: list[Script], report: Report) -> list[Made]:
    """Texts of several parts: audio, the row count, the seconds that it took, and of each part what `_packed` says."""
    made: list[Made] = []
    for script in scripts:
        start = time.perf_counter()
        chunks: list[np.ndarray] = [np.zeros(0, np.float32)]
        said: list[streaming.Spoken] = []
        for event in streaming.perform(engine, script, report):
            if isinstance(event, Chunk):
                chunks.append(event.audio)
            elif isinstance(event, streaming.Spoken):
                said.append(event)
        about = np.array(engine.row_count(len(said))), np.array(time.perf_counter() - start)
        made.append((np.concatenate(chunks), *about, *(array for spoken in said for array in _packed(spoken))))
    return made


def _packed(spoken: streaming.Spoken) -> Made:
    about = (spoken.number, spoken.request.seed, spoken.ended, spoken.attempts, spoken.start, spoken.end)
    return np.array(about, np.uint64), spoken.semantic, spoken.coarse, spoken.fine


def _unpacked(script: Script, arrays: Sequence[np.ndarray]) -> streaming.Spoken:
    about, *tokens_ = arrays
    number, seed, ended, attempts, start, end = map(int, about)
    request = dataclasses.replace(script.requests[number], seed=seed)
    semantic, two, eight = tokens_
    return streaming.Spoken(number, request, semantic, bool(ended), attempts, two, eight, start, end)


def _quietly(stage: str, done: int, total: int) -> None:
    """Progress that nobody is told of."""


@contextmanager
def _timed(timings: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings.append(time.perf_counter() - start)
