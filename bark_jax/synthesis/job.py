"""What a corpus run is asked for, and the row that comes out. Knows neither files nor models.

What decides the audio is in `Job` and nowhere else; its settings are kept beside what is made, so that a run is never
continued with others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from bark_jax.settings import Sampling

AUDIO = ("flac", "pcm16")
FORMATS = ("parquet", "webdataset")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text_sha256", pa.string()),
        pa.field("voice", pa.string()),
        pa.field("seed", pa.uint64()),
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("sample_rate", pa.int32(), nullable=False),
        pa.field("n_samples", pa.int64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("ended", pa.bool_()),
        pa.field("real_time_factor", pa.float64()),
        pa.field("audio", pa.binary()),
        pa.field("error", pa.string()),
    ]
)
"""A row of the result. ``audio`` is a FLAC file, or little-endian 16-bit samples; null where there is an ``error``.
``real_time_factor`` is seconds of work for a second of audio, of the rows that were spoken together: the only column
that differs when a row is made again."""


class JobError(ValueError):
    """A corpus run that cannot be done as it is asked for. The message names the value, the rule and the choices."""


class Row(NamedTuple):
    """A row of the input."""

    id: str
    text: Any
    voice: Any
    """Of the row; None: the job's."""


@dataclass(frozen=True)
class Job:
    """How a corpus is spoken.

    Attributes:
      model: as for `bark_jax.load`.
      revision: of a hub id.
      dtype: of the weights, as for `bark_jax.load`; None: the device's default. The digest of the weights, ``model``
        of a row, tells them apart.
      voice: a voice's name or file, for rows that name none.
      seed: of the job, 0 .. 2**64 - 1; each row has its own, see `row_seed`.
      sampling: temperatures and limits.
      split: whether longer texts are spoken part by part, as `Bark.generate` does.
      rows: texts that are spoken at once. It is fixed for the whole run, because only then does a row come out the same
        to the bit whatever is spoken beside it (law 2).
      audio: "flac" (exact, about half the size) or "pcm16".
      format: "parquet", or "webdataset": tar files with a ``.flac`` (``.pcm``) and a ``.json`` for each row.
      shard_rows: rows of a file of the result: what is done again after a kill.
      deadline_s: seconds that may pass without anything being computed, 1 to 604,800 (a week). A row that is silent
        for longer becomes an error row.
      id_column: of the input; unique strings or integers.
      text_column: of the input.
      voice_column: of the input; it may be missing.

    Raises:
      JobError: a value out of its range.
    """

    model: str = "bark-nano"
    revision: str | None = None
    dtype: str | None = None
    voice: str | None = None
    seed: int = 0
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    split: bool = True
    rows: int = 16
    audio: str = "flac"
    format: str = "parquet"
    shard_rows: int = 128
    deadline_s: float = 600.0
    id_column: str = "id"
    text_column: str = "text"
    voice_column: str = "voice"

    def __post_init__(self) -> None:
        for name, choices in (("audio", AUDIO), ("format", FORMATS), ("split", (True, False))):
            value = getattr(self, name)
            if value not in choices:
                raise JobError(f"{name} is {value!r}: choose one of {', '.join(map(str, choices))}")
        for name, most in (("rows", 4096), ("shard_rows", 1_000_000)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise JobError(f"{name} is {value!r}: it must be an integer of 1 to {most:,}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise JobError(f"seed is {self.seed!r}: it must be an integer of 0 to 2**64 - 1")
        if not isinstance(self.deadline_s, int | float) or not 1 <= self.deadline_s <= 604_800:
            raise JobError(f"deadline_s is {self.deadline_s!r}: it must be 1 to 604,800 seconds")
        if not isinstance(self.sampling, Sampling):
            raise JobError(f"sampling is {self.sampling!r}: it must be a bark_jax.Sampling")
        columns = [self.id_column, self.text_column, self.voice_column]
        if len(set(columns)) < len(columns) or not all(isinstance(c, str) and c for c in columns):
            raise JobError(f"the columns are {', '.join(map(repr, columns))}: id, text and voice need three names")

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON values; not what only decides how it is made (`deadline_s`)."""
        tree = dataclasses.asdict(self)
        del tree["deadline_s"]
        return tree

    @property
    def parameters(self) -> str:
        """16 hexadecimal digits of what decides the audio of a row, text, voice and model aside."""
        kept = {name: self.settings()[name] for name in ("sampling", "split", "rows", "dtype", "audio")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def row_seed(seed: int, id_: str) -> int:
    """The seed of a row: the first 8 bytes, little-endian, of SHA-256 over the job's seed (8 bytes so) and its id."""
    digest = hashlib.sha256(struct.pack("<Q", seed) + id_.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "little")
