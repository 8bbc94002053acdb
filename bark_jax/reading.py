"""A long text → a file, part by part; a run that was killed goes on where it stopped, with the same result.

    Bark's events ─▶ OUTPUT.part/ (samples so far, what is needed to go on) ─ at the end ─▶ OUTPUT, timestamps

Takes a loaded model and what `Bark.generate` takes for one text. Knows files and the order of parts, and nothing of how
they are spoken. Memory does not grow with the text's length: samples go to the disk as they come.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from bark_jax import audio, speech
from bark_jax.bark import Bark
from bark_jax.files import lock, replacing, start_of_name
from bark_jax.progress import Progress, reporter
from bark_jax.progress import check as check_progress
from bark_jax.requests import Script
from bark_jax.settings import Sampling, new_seed
from bark_jax.speech import Segment
from bark_jax.splitting import Split
from bark_jax.streaming import Chunk, Spoken
from bark_jax.streaming import Progress as Done
from bark_jax.text import TextError, one_spaced
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
    check_progress(progress)
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
    with _alone(folder):
        now = _state(folder)
        if old is not None and now is None:
            shutil.rmtree(folder, ignore_errors=True)  # the one that has just been made
            raise ReadingError(f"{folder} is gone: another process has finished {output} meanwhile, or removed it")
        if now is not None:  # another process may have gone on with it, or begun it
            _check(folder, now["settings"], state["settings"])
        old = now
        try:
            _speak(bark, script, folder, state, old, progress)
        except OSError as error:
            if error.filename is not None or error.errno is None:
                raise
            raise OSError(error.errno, f"{error.strerror}; the same call goes on from there", str(folder)) from error
        segments = [Segment(**json.loads(line)) for line in (folder / SEGMENTS).read_text("utf-8").splitlines()]
        n = (folder / SAMPLES).stat().st_size // 4
        waveform = np.memmap(folder / SAMPLES, np.dtype("<f4"), "r", shape=(n,)) if n else np.zeros(0, np.float32)
        audio.write(output, waveform, bark.config.codec.sample_rate, subtype=subtype)
        if timestamps is not None:
            speech.save_timestamps(timestamps, segments)
        del waveform
        # Gone in one step: a process that is killed while files go would leave a folder nobody can go on from.
        done = folder.with_name(f".{start_of_name(folder)}.{secrets.token_hex(4)}")
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
    begin = None if old is None or old["parts"] == 0 else _begin(folder, old, len(script.plan.parts))
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


def _alone(folder: Path) -> IO[str]:
    """Make the folder, and refuse a second process at the same output, until what is given is closed."""
    folder.mkdir(exist_ok=True)
    taken = ReadingError(f"{folder} is being written by another process: wait for it, or stop it")
    return lock(folder / LOCK, taken)


def _settings(bark: Bark, script: Script) -> dict[str, Any]:
    """What decides the result, as JSON."""
    said, voices = hashlib.sha256(), hashlib.sha256()
    said.update(repr((script.plan.pause_s, script.plan.whole)).encode())
    for part, request in zip(script.plan.parts, script.requests, strict=True):
        said.update(repr((one_spaced(part.text), part.speaker, part.pause_s)).encode())
        if request.voice is not None:
            for array in (request.voice.semantic, request.voice.coarse, request.voice.fine):
                voices.update(np.ascontiguousarray(array).tobytes())
    first = script.requests[0]
    return {
        "text": f"{len(script.plan.parts)} parts, SHA-256 {said.hexdigest()[:16]}",
        "voices": f"SHA-256 {voices.hexdigest()[:16]}",
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
    if folder.exists() and not folder.is_dir():
        raise ReadingError(f"{folder} is not a folder: it is in the way of what a reading keeps until it is done")
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
            value = state[key]
            if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
                raise TypeError(f"its {key} is {value!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ReadingError(f"{path} is damaged: {error}; remove {folder}") from None
    return state


def _begin(folder: Path, state: Mapping[str, Any], n_parts: int) -> Done:
    """Where to go on. Raises `ReadingError` if what a state promises is not there."""
    try:
        for name, needed in ((SAMPLES, 4 * state["samples"]), (SEGMENTS, state["table"])):
            size = (folder / name).stat().st_size
            if size < needed:
                raise ValueError(f"{name} has {size:,} bytes, and {needed:,} were written")
        with (folder / SEGMENTS).open("rb") as file:
            lines = file.read(state["table"]).decode().splitlines()
        made = [Segment(**json.loads(line)) for line in lines]
        if not len(made) == state["parts"] <= n_parts:
            found = f"{len(made)} in its table, {state['parts']} in its state, {n_parts} in the text"
            raise ValueError(f"the numbers of parts do not agree: {found}")
        voices = {speaker: Voice.load(folder / file) for speaker, file in state["voices"]}
        return Done(state["parts"], state["samples"], voices, frozenset(state["settled"]))
    except (OSError, TypeError, ValueError) as error:
        raise ReadingError(f"{folder} is damaged: {error}; remove it") from None


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
