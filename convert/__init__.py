"""Published Bark weights → a native checkpoint folder: ``python -m convert SRC DST``.

`convert` is the whole story: find the sources (``read``), name the model they make (``names``), account for every
tensor (``check``), transform (``transforms``) and write. One network is in memory at a time. torch is imported by this
package and nowhere else; ``bark_jax`` imports it only when asked for weights that are not converted yet.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
"""How tables and linears of the three GPTs may be stored; norms, biases and the codec are always float32."""


class ConversionError(ValueError):
    """A source that cannot be converted: damaged, incomplete, unsafe, or not Bark. The message lists every problem."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion did; ``str()`` is the text that the command prints."""

    source: Path
    destination: Path
    dtype: str
    tied: bool
    """Whether the fine network's heads are its tables."""
    files: dict[str, int]
    """Source files read, and their sizes in bytes."""
    parameters: dict[str, int]
    """Numbers written, by network."""
    ignored: dict[str, int]
    """Source tensors left behind on purpose, by network."""
    written_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"converted {self.source}"]
        lines += [f"  read   {name}  {size / 1e6:,.1f} MB" for name, size in self.files.items()]
        for network, count in self.parameters.items():
            ignored = self.ignored.get(network, 0)
            rest = f", {ignored} source tensors of no use left out" if ignored else ""
            low = "float32" if network == "codec" else self.dtype
            lines.append(f"  {network:<8} {count:>13,} parameters, {low}{rest}")
        lines.append(f"  fine heads {'shared with the tables' if self.tied else 'of their own'}")
        lines += [f"  note: {note}" for note in self.notes]
        lines.append(f"wrote {self.destination}  {self.written_bytes / 1e6:,.1f} MB in {self.seconds:.1f} s")
        return "\n".join(lines)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
    sizes: str | Mapping[str, str] | None = None,
    verify: bool = False,
    local_files_only: bool = False,
    log: Callable[[str], Any] = print,
) -> Report:
    """Convert Bark weights into a native checkpoint folder.

    Args:
      src: a folder with Suno's ``.pt`` files, a Hugging Face Bark folder, or a hub id (``suno/bark``).
      dst: the folder to make: complete afterwards, or absent.
      codec: EnCodec, as the ``.th`` file or a Hugging Face folder. Default: ``encodec_24khz*.th`` in `src`, the codec
        inside a Hugging Face Bark, or ``facebook/encodec_24khz`` from the hub.
      tokenizer: ``vocab.txt`` or ``tokenizer.json``. Default: either of them in `src`, or from the hub.
      dtype: one of `DTYPES`.
      sizes: "small" or "large", or one of them per "text", "coarse", "fine", where `src` has both.
      verify: compare logits and audio with torch on the weights as they were read.
      local_files_only: take from the hub's cache only, without any network access.
      log: receives one line at a time about what takes long.

    Raises:
      ConversionError: the source is damaged, incomplete, unsafe or not Bark. Nothing is written.
      ConfigError, TokenizerError: its settings or its vocabulary contradict each other. Nothing is written.
      ModuleNotFoundError: torch is not installed.
      FileExistsError: `dst` exists and is not an empty folder.
      OSError: a file cannot be read or written, the disk is full, or the hub cannot be reached.
    """
    started = time.monotonic()
    if dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}: choose one of {', '.join(DTYPES)}")
    _need_torch()
    from bark_jax import weights
    from convert import check, names, read

    destination = Path(dst).expanduser().absolute()
    read.refuse_existing(destination)
    found = read.find(src, codec=codec, tokenizer=tokenizer, sizes=sizes, local_files_only=local_files_only, log=log)
    notes = [*found.notes, *check.published(found.files, log)]
    config, aliases = read.model(found)
    vocabulary = read.vocabulary(found.tokenizer, config.semantic)

    abstract = weights.networks(config)
    plans: dict[str, check.Plan] = {}
    problems: list[str] = []
    for network, module in abstract.items():
        targets = {name: tuple(leaf.shape) for name, leaf in weights.names(module).items()}
        source = found.networks[network]
        shapes = read.shapes(source)
        table = names.table(network, source.layout, config)
        plans[network] = check.plan(network, table, shapes, targets, aliases if network == "fine" else {}, problems)
    problems += read.strangers(found)
    check.stop(problems, src)

    parameters, written = {}, 0
    with weights.Writer(destination, config, vocabulary) as writer:
        for network, plan in plans.items():
            log(f"{network}: {len(plan.assignments)} tensors")
            tensors = found.networks[network].open()
            arrays = check.fill(network, plan, tensors, dtype, problems)
            if not problems:
                written += writer.write(network, arrays)
                parameters[network] = sum(array.size for array in arrays.values())
            if verify and not problems:
                notes.append(check.verify(network, config, abstract[network], arrays, plan, tensors, dtype))
            del tensors, arrays
        check.stop(problems, src)
    return Report(
        source=found.folder,
        destination=destination,
        dtype=dtype,
        tied=config.fine.network.tied,
        files={path.name: path.stat().st_size for path in found.files},
        parameters=parameters,
        ignored={network: len(plan.ignored) for network, plan in plans.items()},
        written_bytes=written,
        seconds=time.monotonic() - started,
        notes=tuple(notes),
    )


def _need_torch() -> None:
    try:
        import torch
    except ImportError:
        raise ModuleNotFoundError("converting needs torch: pip install 'bark-jax[convert]'", name="torch") from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    if version < (2, 10):
        raise ConversionError(
            f"torch is {torch.__version__}: it must be 2.10 or newer, whose reader of untrusted files has no known "
            "holes (CVE-2025-32434, CVE-2026-24747)"
        )


def run(command: Callable[[], Any]) -> int:
    """Call what a command line asks for and print what it gives; returns the exit code: 0 only if all is written."""
    try:
        report = command()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted, nothing was written", file=sys.stderr)
        return 130
    print(report)
    return 0
