"""The named transforms: parts of torch tensors → one tensor in bark_jax's layout.

Each takes the parts of one target by role and gives a torch tensor, and can tell its shape from the parts' shapes
alone, so that everything is checked before any number is read. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from bark_jax.config import FineGPTConfig
from convert import ConversionError, names

if TYPE_CHECKING:
    from convert.read import Source

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """A way to make one tensor."""

    shape: Callable[[Mapping[str, Shape]], Shape | str]
    """Parts' shapes by role → shape of the result, or a sentence that says what is wrong with the parts."""
    apply: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def _roles(parts: Mapping[str, Shape], *wanted: str) -> str | None:
    missing = [role for role in wanted if role not in parts]
    extra = [role for role in parts if role not in wanted]
    if missing or extra:
        return f"is made of {' and '.join(wanted)}, found {' and '.join(sorted(parts)) or 'nothing'}"
    return None


def _copy_shape(parts: Mapping[str, Shape]) -> Shape | str:
    return _roles(parts, "x") or parts["x"]


def _convolution_shape(order: Shape) -> Callable[[Mapping[str, Shape]], Shape | str]:
    def shape(parts: Mapping[str, Shape]) -> Shape | str:
        wrong = _roles(parts, "x") if "x" in parts else _roles(parts, "g", "v")
        if wrong:
            return wrong
        full = parts.get("x", parts.get("v", ()))
        if len(full) != 3:
            return f"must have 3 axes, its source has shape {full}"
        if "g" in parts and parts["g"] != (full[0], 1, 1):
            return f"has a weight norm of shape {parts['g']}, which must be {(full[0], 1, 1)}"
        return tuple(full[axis] for axis in order)

    return shape


def _convolution(order: Shape) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    def apply(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weight = parts["x"] if "x" in parts else fold_weight_norm(parts["v"].float(), parts["g"].float())
        return weight.permute(order)

    return apply


def fold_weight_norm(v: torch.Tensor, g: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """g · v / ‖v‖, the norm over all axes but one (the first or the last): torch's own routine, to the last bit."""
    return torch._weight_norm(v, g, axis)


def _add_shape(parts: Mapping[str, Shape]) -> Shape | str:
    wrong = _roles(parts, "ih", "hh")
    if wrong:
        return wrong
    if parts["ih"] != parts["hh"]:
        return f"is the sum of shapes {parts['ih']} and {parts['hh']}, which must be equal"
    return parts["ih"]


def _stack_shape(parts: Mapping[str, Shape]) -> Shape | str:
    if sorted(parts) != sorted(str(i) for i in range(len(parts))):
        return f"is made of numbers 0 to n - 1, found {', '.join(sorted(parts, key=lambda r: (len(r), r)))}"
    if len(set(parts.values())) != 1:
        return f"is made of equal shapes, found {' and '.join(map(str, sorted(set(parts.values()))))}"
    return (len(parts), *parts["0"])


TRANSFORMS = {
    "copy": Transform(_copy_shape, lambda parts: parts["x"]),
    # torch (out, in, k) → (k, in, out)
    "conv": Transform(_convolution_shape((2, 1, 0)), _convolution((2, 1, 0))),
    # torch's transposed convolution (in, out, k) → (in, k, out)
    "up": Transform(_convolution_shape((0, 2, 1)), _convolution((0, 2, 1))),
    # torch's LSTM adds two biases to the same sum
    "add": Transform(_add_shape, lambda parts: parts["ih"].float() + parts["hh"].float()),
    "stack": Transform(_stack_shape, lambda parts: torch.stack([parts[str(i)] for i in range(len(parts))])),
}


def ties(source: Source, config: FineGPTConfig, *, strict: bool, tie: bool) -> tuple[bool, dict[str, str | None]]:
    """Whether the fine network's heads are its tables.

    In all published files head i and the table of codebook i + 1 are one tensor, under two names or under one of them.

    Args:
      source: of the fine network.
      strict: a head that differs from its table is an error (Suno's network cannot hold such a pair).
      tie: a table or head may be absent, and is then its partner.

    Returns:
      (tied, aliases): `aliases` maps names of duplicates to None (leave out), and absent names to the partner that
      stands in for them.
    """
    tensors = source.open()
    pattern = names.FINE_TABLES[source.layout]
    count = config.n_codes_total - config.n_codes_given
    pairs = [(f"lm_heads.{i}.weight", pattern.format(i + 1)) for i in range(count)]
    sizes: set[Shape] = {(config.input_vocab_size, config.n_embd), (config.output_vocab_size, config.n_embd)}
    absent = [pair for pair in pairs if (pair[0] in tensors) != (pair[1] in tensors)]
    different = [
        (head, table)
        for head, table in pairs
        if head in tensors and table in tensors and not _same(tensors[head], tensors[table], sizes)
    ]
    if different and strict:
        shown = "; ".join(f"{head} differs from {table}" for head, table in different[:3])
        raise ConversionError(f"{source.files[0]}: {shown}: Suno's network shares them, so one of the two is wrong")
    # A head that predicts codebook k but shares another codebook's table cannot be "the table of codebook k".
    tied = (
        config.n_codes_given == 1
        and config.input_vocab_size == config.output_vocab_size
        and not different
        and (tie or not absent)
    )
    aliases: dict[str, str | None] = {}
    for head, table in pairs:
        if tie and head not in tensors and table in tensors and not tied:
            aliases[head] = table
        if tie and table not in tensors and head in tensors:
            aliases[table] = head
        if tied and head in tensors:
            aliases[head] = None
    return tied, aliases


def _same(a: torch.Tensor, b: torch.Tensor, sizes: set[Shape]) -> bool:
    if tuple(a.shape) not in sizes or tuple(b.shape) not in sizes:
        return True  # a wrong shape is reported as that
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    same_place = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    # NaN is reported later, as itself.
    return same_place or bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
