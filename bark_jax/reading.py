"""A long text → a file, part by part; a run that was killed goes on where it stopped, with the same result.

    Bark's events ─▶ OUTPUT.part/ (samples so far, what is needed to go on) ─ at the end ─▶ OUTPUT, timestamps

Takes a loaded model and what `Bark.generate` takes for one text. Knows files and the order of parts, and nothing of how
they are spoken. Memory does not grow with the text's length: samples go to the disk as they come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bark_jax import audio, speech
from bark_jax.bark import Bark
from bark_jax.files import replacing
from bark_jax.progress import Progress, reporter
from bark_jax.requests import Script
from bark_jax.sampling import Sampling, new_seed
from bark_jax.speech import Segment
from bark_jax.splitting import Split
from bark_jax.streaming import Chunk, Spoken
from bark_jax.streaming import Progress as Done
from bark_jax.text import TextError
from bark_jax.voice import Voice

STATE, SAMPLES, SEGMENTS, LOCK = "state.json", "samples.f32", "segments.jsonl", ".lock"


class ReadingError(ValueError):
    """What is at hand belongs to another reading; the message says which of the settings differ."""


def read(
    bark: Bark,
    text: str,
    output: str | Path,
    *,
    voice: Any = None,
    seed: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    adapter: str | None = None,
    split: bool | Split = True,
    subtype: str | None = None,
    timestamps: str | Path | None = None,
    progress: Progress = None,
) -> list[Segment]:
    """Speak a text of any length into a file.

    Until it is complete, everything is in the folder ``OUTPUT.part``; the same call goes on from there. On one machine
    the result is the same as without the interruption.

    Args:
      output: a path; its ending chooses the format, see `bark_jax.audio.write`.
      seed: None: draws one, or goes on with that of the interrupted run.
      subtype: see `bark_jax.audio.write`.
      timestamps: a path ending in .srt or .json to write them to, or None.
      voice, sampling, adapter, split, progress: as for `Bark.generate`.

    Returns:
      The parts, with their times.

    Raises:
      ReadingError: ``OUTPUT.part`` was begun with another text, model, voice or setting (a `ValueError`).
      ValueError: as `Bark.generate`, and before anything is computed.
      OSError: a file cannot be written.
    """
    if not isinstance(text, str):
        raise TextError(f"text is a {type(text).__name__}: one text is read, a str")
    output = Path(output)
    audio.check_output(output, subtype)
    if timestamps is not None:
        speech.check_timestamps(timestamps)
    folder = output.with_name(output.name + ".part")
    old = _state(folder)
    if seed is None:
        seed = new_seed() if old is None else old["seed"]
    [script] = bark._intake.scripts(text, voice, seed, sampling, adapter, split)
    state = {"seed": script.requests[0].seed, "settings": _settings(bark, script), "parts": 0}
    if old is not None:
        _check(folder, old["settings"], state["settings"])
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        _speak(bark, script, folder, state, old, progress)
        segments = [Segment(**json.loads(line)) for line in (folder / SEGMENTS).read_text("utf-8").splitlines()]
        n = (folder / SAMPLES).stat().st_size // 4
        waveform = np.memmap(folder / SAMPLES, np.dtype("<f4"), "r", shape=(n,)) if n else np.zeros(0, np.float32)
        audio.write(output, waveform, bark.config.codec.sample_rate, subtype=subtype)
        if timestamps is not None:
            speech.save_timestamps(timestamps, segments)
        del waveform
        # Gone in one step: a process that is killed while files go would leave a folder nobody can go on from.
        done = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        folder.rename(done)
    shutil.rmtree(done, ignore_errors=True)
    return segments


def _speak(
    bark: Bark,
    script: Script,
    folder: Path,
    state: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    progress: Progress,
) -> None:
    """Make what is missing of samples and segments; `state` is that of a new reading, `old` of the interrupted one."""
    begin = None if old is None or old["parts"] == 0 else _begin(folder, old)
    if old is None:
        _write_state(folder, state)
    samples, table = folder / SAMPLES, folder / SEGMENTS
    if begin is None or begin.parts < len(script.plan.parts):
        with (
            samples.open("ab") as file,
            table.open("a", encoding="utf-8") as lines,
            reporter(progress) as report,
            jax.default_device(bark.device),
        ):
            # What came after the last complete group is spoken again.
            file.truncate(0 if begin is None else 4 * begin.samples)
            lines.truncate(0 if old is None else old.get("table", 0))
            for event in bark._events(script, report, low=False, begin=begin):
                if isinstance(event, Chunk):
                    file.write(event.audio.astype("<f4").data)
                elif isinstance(event, Spoken):
                    lines.write(json.dumps(dataclasses.asdict(bark._segment(event))) + "\n")
                else:
                    for written in (file, lines):
                        written.flush()
                        os.fsync(written.fileno())
                    _keep(folder, event, {**state, "table": table.stat().st_size})


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second process at the same output."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ReadingError(f"{folder} is being written by another process: wait for it, or stop it") from None
        yield


def _settings(bark: Bark, script: Script) -> dict[str, Any]:
    """What decides the result, as JSON."""
    digest = hashlib.sha256()
    for part, request in zip(script.plan.parts, script.requests, strict=True):
        digest.update(repr((part.text, part.speaker, part.pause_s)).encode())
        if request.voice is not None:
            for array in (request.voice.semantic, request.voice.coarse, request.voice.fine):
                digest.update(np.ascontiguousarray(array).tobytes())
    first = script.requests[0]
    return {
        "text and voices": digest.hexdigest(),
        "seed": first.seed,
        "model": bark.name,
        "weights": bark.digest(),
        "dtype": bark.dtype,
        "rows": bark.rows,
        "adapter": first.adapter,
        "sampling": dataclasses.asdict(first.sampling),
        "split": dataclasses.asdict(script.split),
    }


def _check(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    # Compared as JSON has them: that is how they were kept.
    new = json.loads(_json(new))
    changed = [
        f"{name}: it was {old.get(name)!r}, and is {new[name]!r} now" for name in new if old.get(name) != new[name]
    ]
    if changed:
        raise ReadingError(
            f"{folder} holds a reading that was interrupted, with other settings. Put them back, or remove that folder:"
            "\n  " + "\n  ".join(changed)
        )


def _state(folder: Path) -> dict[str, Any] | None:
    path = folder / STATE
    if not path.exists():
        # What is hidden is the lock, or a state that was being written when the process was killed.
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ReadingError(f"{folder} is not a reading that was interrupted: it has no {STATE}; remove it")
        return None
    try:
        state = json.loads(path.read_text("utf-8"))
        known = {"seed": int, "settings": dict, "parts": int}
        if state["parts"]:
            known |= {"samples": int, "table": int, "voices": list, "settled": list}
        for key, kind in known.items():
            if not isinstance(state[key], kind):
                raise TypeError(f"its {key} is {state[key]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ReadingError(f"{path} is damaged: {error}; remove {folder}") from None
    return state


def _begin(folder: Path, state: Mapping[str, Any]) -> Done:
    for name, needed in ((SAMPLES, 4 * state["samples"]), (SEGMENTS, state["table"])):
        size = (folder / name).stat().st_size
        if size < needed:
            raise ReadingError(f"{folder / name} has {size:,} bytes, and {needed:,} were written: remove {folder}")
    voices = {speaker: Voice.load(folder / file) for speaker, file in state["voices"]}
    return Done(state["parts"], state["samples"], voices, frozenset(state["settled"]))


def _keep(folder: Path, done: Done, state: dict[str, Any]) -> None:
    """Write what is needed to go on after a group; samples and segments are on the disk already."""
    voices = []
    for i, (speaker, voice) in enumerate(done.voices.items()):
        file = folder / f"voice-{i}-{done.parts}.safetensors"  # not over the one that the old state names
        voice.save(file)
        voices.append((speaker, file.name))
    state |= {"parts": done.parts, "samples": done.samples, "voices": voices, "settled": list(done.settled)}
    _write_state(folder, state)
    for stale in set(folder.glob("voice-*")) - {folder / name for _, name in voices}:
        stale.unlink()


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    with replacing(folder / STATE) as part:
        part.write_text(_json(state), "utf-8")


def _json(tree: Any) -> str:
    return json.dumps(tree, default=lambda number: number.item())  # numpy's numbers are numbers
