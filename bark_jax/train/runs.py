"""The folder of a training run: what is written while it trains, and what a later start finds there.

    config.toml          the settings, as they were given
    metrics.jsonl        a line per step and per evaluation
    loss.png             both losses over the steps
    checkpoints/STEP/    weights, optimizer and a record of the run after STEP updates, written by orbax
    NETWORK.safetensors  the product, or adapter.safetensors (`bark_jax.train.loop` says which)

Everything appears whole or not at all: files take their names when they are complete, and so do checkpoints. A
checkpoint is removed only after a newer one is on the disk, by renaming it first. So whenever a process is killed, the
newest folder with a plain number is a good checkpoint, and what else is found is removed at the next start.

Knows settings and named arrays; nothing of networks, losses or data.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors

from bark_jax import files
from bark_jax.files import replacing
from bark_jax.train.config import TrainConfig
from bark_jax.weights import write_file

CONFIG, METRICS, PLOT, CHECKPOINTS = "config.toml", "metrics.jsonl", "loss.png", "checkpoints"
_LOCK, _DELETED = ".lock", "deleted"
_LOGGERS = ("absl", "asyncio")


class RunError(ValueError):
    """A run folder that cannot be used as it was asked: other settings, other data, not a run, or in use."""


class Run:
    """A run's folder. `close` it, or use it as a context manager.

    Args:
      folder: made by `begin`; it may exist if it is empty or holds a run.
      resume: True: there must be a checkpoint to go on from. False: there must be none. None: go on if there is one.

    Raises:
      RunError: the folder holds something else, another process trains in it, or `resume` says otherwise.
    """

    def __init__(self, folder: str | Path, *, resume: bool | None = None):
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self._lock: Any = None
        self._metrics: Any = None
        self._manager: Any = None
        found = self._found()
        foreign = found - {CONFIG, METRICS, PLOT, CHECKPOINTS, _LOCK}
        if foreign and CONFIG not in found:
            raise RunError(
                f"out is {str(self.folder)!r}, which holds {', '.join(sorted(foreign)[:3])} and no {CONFIG}: name a "
                "new folder, or that of a run to go on with"
            )
        if found:
            self._take_lock()
        try:
            if CHECKPOINTS in found:
                self._manager = self._open_manager()
            if resume is True and self.latest is None:
                raise RunError(f"resume was asked for, and {self.folder} has no checkpoint to go on from")
            if resume is False and self.latest is not None:
                raise RunError(
                    f"resume was refused, and {self.folder} has a checkpoint at step {self.latest}: name a new folder"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; nothing is written."""
        for thing in (self._metrics, self._manager, self._lock):
            if thing is not None:
                thing.close()
        self._metrics = self._manager = self._lock = None

    # --- opening ------------------------------------------------------------------------------------------------------

    def check(self, settings: Mapping[str, Any], *, partly: bool = False) -> None:
        """Compare with the settings of the run that is there, if there is one; `partly`: only those given.

        One that the run does not know, because it began before there was such a setting, had its default.

        Raises:
          RunError: they differ; every key is named with the old and the new value.
        """
        if self.latest is None:
            return
        old = self.record(self.latest).get("settings")
        if not isinstance(old, dict):
            raise RunError(f"the checkpoint at step {self.latest} of {self.folder} is damaged: it has no settings")
        new = json.loads(json.dumps(settings))
        old = {key: value for key, value in TrainConfig.defaults().items() if key in new} | old
        if partly:
            old = {key: value for key, value in old.items() if key in new}
        missing = object()
        changed = [
            f"{key}: it was {_shown(old.get(key, '(not set)'))}, and is {_shown(new.get(key, '(not set)'))} now"
            for key in [*old, *(key for key in new if key not in old)]
            if old.get(key, missing) != new.get(key, missing)
        ]
        if changed:
            raise RunError(
                f"{self.folder} holds a run (at step {self.latest}) with other settings, and going on would mix the "
                "two. Put them back, or name a new folder as out:\n  " + "\n  ".join(changed)
            )

    def check_room(self, needed: int) -> None:
        """Refuse if the disk cannot hold `needed` bytes.

        Raises:
          OSError: it cannot.
        """
        folder = self.folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint takes {needed:,} bytes while it is written, and the disk has {free:,} left",
                str(self.folder),
            )

    def begin(self, config: TrainConfig, settings: Mapping[str, Any] | None = None) -> None:
        """Make the folder, write the settings, and cut what was logged after the newest checkpoint.

        Args:
          settings: checked once more, now that no other process can train here (`check`).

        Raises:
          RunError: they differ from those of the run that is there.
          OSError: the folder cannot be written to.
        """
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if self._manager is None:
            self._manager = self._open_manager()
        if settings is not None:
            self.check(settings)
        # What a killed process was writing or removing. orbax would do it in a thread, which may outlive this object.
        remove_parts(self.folder)
        for path in (self.folder / CHECKPOINTS).iterdir():
            if re.fullmatch(rf"\d+\.orbax-checkpoint-tmp.*|{_DELETED}", path.name):
                shutil.rmtree(path, ignore_errors=True)
        with replacing(self.folder / CONFIG) as part:
            part.write_text(config.to_toml(), "utf-8")
        path = self.folder / METRICS
        kept = [line for line in self.metrics() if line["step"] <= (self.latest or 0)] if self.latest else []
        with replacing(path) as part:
            part.write_text("".join(_line(line) for line in kept), "utf-8")
        self._metrics = path.open("a", encoding="utf-8")

    def _found(self) -> set[str]:
        try:
            return set(os.listdir(self.folder))
        except FileNotFoundError:
            return set()
        except NotADirectoryError:
            raise RunError(f"out is {str(self.folder)!r}, which is a file: it must be a folder, or not exist") from None

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        self._lock = lock(self.folder)

    def _open_manager(self) -> Any:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None,  # `save` removes old ones, in an order of its own
            enable_async_checkpointing=False,
            todelete_subdir=_DELETED,
        )
        return ocp.CheckpointManager(
            self.folder / CHECKPOINTS, options=options, item_names=("weights", "optimizer", "record")
        )

    # --- checkpoints --------------------------------------------------------------------------------------------------

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint; None before the first."""
        return None if self._manager is None else self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, in order."""
        return [] if self._manager is None else sorted(self._manager.all_steps())

    def record(self, step: int) -> dict[str, Any]:
        """What `save` was told about the run, of one checkpoint. Raises `RunError` if it cannot be read."""
        return self._restore(step, record=ocp.args.JsonRestore())["record"]

    def restore(self, step: int, **abstract: Any) -> dict[str, Any]:
        """Arrays of one checkpoint.

        Args:
          abstract: `weights` or `optimizer` or both: name → `jax.ShapeDtypeStruct` with the sharding to restore to.

        Raises:
          RunError: it cannot be read, or holds other arrays.
        """
        return self._restore(step, **{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()})

    def _restore(self, step: int, **items: Any) -> dict[str, Any]:
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and what it stands on have many
            raise RunError(
                f"the checkpoint {self.folder / CHECKPOINTS / str(step)} cannot be read: {_reason(error)}\nRemove that "
                "folder to go on from the one before it"
            ) from error
        return {name: restored[name] for name in items}

    def save(
        self,
        step: int,
        weights: Mapping[str, jax.Array],
        optimizer: Mapping[str, jax.Array],
        record: Mapping[str, Any],
        *,
        keep: int,
        best: int | None,
    ) -> None:
        """Write a checkpoint, then remove all but the newest `keep` and the one of step `best`.

        Raises:
          OSError: it could not be written: the message names it. Earlier checkpoints are as they were.
        """
        if step in self.steps:
            return
        path = self.folder / CHECKPOINTS / str(step)
        failed = None
        with _quiet():
            try:
                self.check_room(sum(leaf.nbytes for leaf in [*weights.values(), *optimizer.values()]))
                # What is logged up to here must not be younger than the checkpoint, not even after a power cut.
                self._metrics.flush()
                os.fsync(self._metrics.fileno())
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        weights=ocp.args.StandardSave(dict(weights)),
                        optimizer=ocp.args.StandardSave(dict(optimizer)),
                        record=ocp.args.JsonSave(dict(record)),
                    ),
                    force=True,
                )
                self._manager.wait_until_finished()
            except (OSError, ValueError) as error:  # what a full disk comes as
                failed = _reason(error)
            if failed is not None:
                gc.collect()  # of what orbax leaves behind, each part complains for itself when it goes
                for name in _LOGGERS:
                    logging.getLogger(name).addFilter(lambda record: str(path) not in record.getMessage())
                _remove(path.parent.glob(f"{step}.*"))
        if failed is not None:
            before = f"; the checkpoint at step {self.latest} is intact" if self.latest is not None else ""
            raise OSError(f"the checkpoint {path} could not be written{before}: {failed}")
        newest = self.steps[-keep:]
        for old in self.steps:
            if old not in newest and old != best:
                self._manager.delete(old)
        shutil.rmtree(path.parent / _DELETED, ignore_errors=True)

    # --- metrics ------------------------------------------------------------------------------------------------------

    def log(self, **line: Any) -> None:
        """Add a line to metrics.jsonl. Raises `OSError`, which names the file, if it cannot be written."""
        try:
            self._metrics.write(_line(line))
            self._metrics.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder / METRICS)) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, up to one that is broken (the last, if a process was killed)."""
        lines: list[dict[str, Any]] = []
        try:
            text = (self.folder / METRICS).read_bytes()
        except FileNotFoundError:
            return lines
        for raw in text.splitlines(keepends=True):
            try:
                line = json.loads(raw)
                if not raw.endswith(b"\n") or not isinstance(line["step"], int):
                    break
            except (ValueError, KeyError, TypeError):
                break
            lines.append(line)
        return lines

    def plot(self, title: str) -> None:
        """Draw loss.png from metrics.jsonl: every step's loss, their moving average, and the validation loss."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        lines = self.metrics()
        trained = np.array([(line["step"], line["loss"]) for line in lines if "loss" in line]).reshape(-1, 2)
        checked = np.array([(x["step"], x["validation_loss"]) for x in lines if "validation_loss" in x]).reshape(-1, 2)
        figure = Figure(figsize=(8, 4.5))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.12, 0.87, 0.8))
        width = max(1, len(trained) // 50)  # of the moving average
        if len(trained):
            axes.plot(*trained.T, color="C0", alpha=0.3 if width > 1 else 1, linewidth=1, label="training, each step")
        if width > 1:
            mean = np.convolve(trained[:, 1], np.ones(width) / width, mode="valid")
            axes.plot(trained[width - 1 :, 0], mean, color="C0", label=f"training, mean of {width}")
        if len(checked):
            axes.plot(*checked.T, color="C1", marker="o", markersize=4, label="validation")
            after = checked[checked[:, 0] > 0]
            if len(after):
                step, value = after[np.argmin(after[:, 1])]
                axes.plot(step, value, color="C1", marker="*", markersize=14, label=f"best: {value:.4f} at {step:.0f}")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.set_title(title, parse_math=False)  # a folder's name may hold anything
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        with replacing(self.folder / PLOT) as part, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(part, format="png", dpi=120)


def lock(folder: Path, work: str = "training") -> Any:
    """Keep other processes out of a folder until what is given is closed; `work`: what one does in there.

    Raises:
      RunError: another process is in it.
    """
    taken = RunError(f"another process is {work} in {folder}: name another folder")
    return files.lock(folder / _LOCK, taken)


def remove_parts(folder: Path) -> None:
    """Remove what a killed process was writing in a folder (see `files.replacing`); to be called under its lock."""
    for path in folder.glob(".*.part"):
        path.unlink()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises `OSError`, which names it, if that fails."""
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with replacing(path) as part:
        try:
            write_file(part, arrays, dict(metadata))
        except safetensors.SafetensorError as error:  # it reports a full disk as its own error
            raise OSError(errno.EIO, str(error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that orbax, asyncio and threads print about a failure which is raised as well."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    silent: Any = lambda *_: None  # noqa: E731
    sys.excepthook = sys.unraisablehook = threading.excepthook = silent
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _remove(paths: Iterable[Path]) -> None:
    """Remove folders that threads may still be writing to, as far as that goes; the next start removes the rest."""
    for path in paths:
        for _ in range(10):
            shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.05)
            if not path.exists():
                break


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:99] + "…"


def _reason(error: BaseException) -> str:
    """The part that says something: errors of tensorstore come with a page of context."""
    text = str(error).strip().partition(" [tensorstore_spec")[0] or type(error).__name__
    return text if len(text) <= 800 else text[:799] + "…"
