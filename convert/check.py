"""Accounting: every source tensor used once or ignored, every target filled once, shapes equal, numbers finite.

`plan` decides from names and shapes alone, for all networks, before a number is read; `fill` then makes one network's
arrays. Both add to one list of problems, so that a bad source is described whole. `published` recognises Suno's own
files, `verify` runs the converted network against torch on the weights as they were read.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F

from bark_jax import weights
from bark_jax.config import BarkConfig, CodecConfig
from convert import ConversionError, names
from convert.transforms import TRANSFORMS, Shape

SHOWN = 40
"""Problems that one error message lists at most."""


@dataclasses.dataclass(frozen=True)
class Assignment:
    """How one target is made: source names by role."""

    transform: str
    parts: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything decided about one network."""

    assignments: dict[str, Assignment]
    ignored: tuple[str, ...]


def plan(
    network: str,
    table: names.Table,
    sources: Mapping[str, Shape],
    targets: Mapping[str, Shape],
    aliases: Mapping[str, str | None],
    problems: list[str],
) -> Plan:
    """Match source names with targets; whatever does not come out even is added to `problems`."""
    ignored: list[str] = [name for name, partner in aliases.items() if partner is None]
    effective = {name: name for name in sources if aliases.get(name, name) is not None}
    effective |= {name: partner for name, partner in aliases.items() if partner is not None}
    assignments: dict[str, Assignment] = {}
    for name, source in effective.items():
        matches = [(found, rule.transform) for rule in table.rules if (found := rule.match(name))]
        skipped = any(names.Rule(pattern, "").match(name) for pattern in table.ignored)
        if skipped and not matches:
            ignored.append(name)
        elif len(matches) != 1 or skipped:
            problems.append(f"{network}: {name} {sources[source]} is {'ambiguous' if matches else 'unknown'}")
        else:
            (target, role), transform = matches[0]
            there = assignments.setdefault(target, Assignment(transform, {}))
            if role in there.parts:
                problems.append(f"{network}: {target} has two sources, {there.parts[role]} and {name}")
            elif transform != there.transform:
                problems.append(f"{network}: {target} has sources of two kinds, {name} is one too many")
            else:
                there.parts[role] = source
    for target, wanted in targets.items():
        assignment = assignments.get(target)
        if assignment is None:
            problems.append(f"{network}: nothing in the source gives {target} {wanted}")
            continue
        shape = TRANSFORMS[assignment.transform].shape({r: sources[s] for r, s in assignment.parts.items()})
        shown = ", ".join(sorted(assignment.parts.values())[:2])
        if isinstance(shape, str):
            problems.append(f"{network}: {target} {shape} ({shown})")
        elif shape != wanted:
            problems.append(f"{network}: {target} must be {wanted}, its source gives {shape} ({shown})")
    for target in sorted(set(assignments) - set(targets)):
        sources_ = ", ".join(sorted(assignments[target].parts.values())[:2])
        problems.append(f"{network}: the config has no place for {target} ({sources_})")
    return Plan({target: assignments[target] for target in targets if target in assignments}, tuple(ignored))


def stop(problems: list[str], source: Any) -> None:
    """Raise `ConversionError` with all problems, if there are any."""
    if problems:
        lines = problems[:SHOWN]
        if len(problems) > SHOWN:
            lines.append(f"... and {len(problems) - SHOWN} more")
        raise ConversionError("\n  ".join([f"{source} cannot be converted ({len(problems)} problems):", *lines]))


def fill(
    network: str, plan: Plan, tensors: Mapping[str, torch.Tensor], dtype: str, problems: list[str]
) -> dict[str, np.ndarray]:
    """The arrays of one network; a copied float32 tensor stays a view of its file."""
    arrays = {}
    for target, assignment in plan.assignments.items():
        parts = {role: tensors[name] for role, name in assignment.parts.items()}
        wrong = [role for role, part in parts.items() if not part.is_floating_point()]
        if wrong:
            name, kind = assignment.parts[wrong[0]], parts[wrong[0]].dtype
            problems.append(f"{network}: {name} is {kind}: weights must be floating point")
            continue
        result = TRANSFORMS[assignment.transform].apply(parts)
        low = weights.is_matrix(network, tuple(result.shape))
        result = result.detach().to(getattr(torch, dtype if low else "float32")).contiguous()
        if not _finite(result):
            broken = [name for role, name in assignment.parts.items() if not _finite(parts[role])]
            reason = f"{', '.join(broken)} holds NaN or infinity" if broken else f"{target} is not finite as {dtype}"
            problems.append(f"{network}: {reason}")
            continue
        if result.dtype == torch.bfloat16:
            arrays[target] = result.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            arrays[target] = result.numpy()
    return arrays


def _finite(tensor: torch.Tensor) -> bool:
    flat = tensor.reshape(-1)  # a view of anything contiguous; in pieces, so that no mask of the whole is made
    return all(bool(torch.isfinite(piece).all()) for piece in flat.split(1 << 22))


# ------------------------------------------------------------------------------------------------------ known files

PUBLISHED = {
    "text.pt": ("b3e42bcbab23b688355cd44128c4cdd3", 2.316e9),
    "coarse.pt": ("5fe964825e3b0321f9d5f3857b89194d", 1.252e9),
    "fine.pt": ("5428d1befe05be2ba32195496e58dc90", 1.107e9),
    "text_2.pt": ("54afa89d65e318d4f5f80e8e8799026a", 5.353e9),
    "coarse_2.pt": ("8a98094e5e3a255a5c9c0ab7efe8fd28", 3.934e9),
    "fine_2.pt": ("59d184ed44e3650774a2f0503a48a97b", 3.741e9),
}
"""md5 and rounded size of Suno's files, as third parties published them."""


def published(files: Iterable[Path], log: Callable[[str], Any]) -> list[str]:
    """One note per file that has the name of one of Suno's: whether it is that file. Never an error."""
    notes = []
    for path in files:
        if path.name not in PUBLISHED:
            continue
        md5, size = PUBLISHED[path.name]
        matches = abs(path.stat().st_size / size - 1) < 0.02
        if matches:
            log(f"{path.name}: comparing its md5 with the published one")
            with path.open("rb") as file:
                matches = hashlib.file_digest(file, "md5").hexdigest() == md5
        verdict = "matches the published file" if matches else "differs: not the file Suno published"
        notes.append(f"{path.name} {verdict}")
    return notes


# ------------------------------------------------------------------------------------------------------------- verify

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""Largest allowed difference of logits and samples, relative to their largest size (but at least 1)."""


def verify(
    network: str,
    config: BarkConfig,
    abstract: Any,
    arrays: Mapping[str, np.ndarray],
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    dtype: str,
) -> str:
    """Run a converted network and torch's operators on the weights as read; returns a note.

    Raises:
      ConversionError: they differ by more than `TOLERANCES`.
    """
    module = weights.fill(abstract, {name: jnp.asarray(array) for name, array in arrays.items()})
    reference = _Reference(plan, tensors)
    random = np.random.default_rng(0)
    with torch.inference_mode():
        if network == "codec":
            shape = (1, config.codec.n_codebooks, 40)
            codes = random.integers(0, config.codec.codebook_size, shape).astype(np.int32)
            ours = _run(lambda net, x: net.decoder(net.embed(x)), module, codes)
            theirs = reference.decode(config.codec, torch.from_numpy(codes).long())
        elif network == "fine":
            part = config.fine.network
            shape = (1, 64, part.n_codes_total)
            codes = random.integers(0, part.input_vocab_size, shape).astype(np.int32)
            last = part.n_codes_total - 1
            ours = _run(lambda net, x: net(last, x), module, codes)
            theirs = reference.fine(part, last, torch.from_numpy(codes).long())
        else:
            stage = getattr(config, network).network
            ids = random.integers(0, stage.input_vocab_size, (1, 64)).astype(np.int32)
            ours = _run(lambda net, x: net.logits(net.hidden(net.embed(x))), module, ids)
            theirs = reference.causal(stage, torch.from_numpy(ids).long())
    wanted = theirs.numpy()
    difference = float(np.max(np.abs(ours.reshape(wanted.shape) - wanted)))
    size = max(1.0, float(np.max(np.abs(wanted))))
    tolerance = TOLERANCES["float32" if network == "codec" else dtype]
    if not difference <= tolerance * size:
        raise ConversionError(
            f"{network}: converted and original weights disagree: largest difference {difference:.2g} at outputs of up "
            f"to {size:.3g}; allowed are {tolerance * size:.2g}"
        )
    return f"{network} verified against torch: largest difference {difference:.1e} at outputs of up to {size:.3g}"


def _run(forward: Callable[[Any, jax.Array], jax.Array], module: Any, ids: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(forward)(module, jnp.asarray(ids)))


class _Reference:
    """Bark's forward passes written with torch's operators, on source tensors looked up by what they became."""

    def __init__(self, plan: Plan, tensors: Mapping[str, torch.Tensor]):
        self._plan, self._tensors = plan, tensors

    def _parts(self, target: str) -> dict[str, torch.Tensor]:
        return {role: self._tensors[name].float() for role, name in self._plan.assignments[target].parts.items()}

    def _get(self, target: str) -> torch.Tensor:
        return self._parts(target)["x"]

    def _maybe(self, target: str) -> torch.Tensor | None:
        return self._get(target) if target in self._plan.assignments else None

    def _norm(self, path: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self._get(f"{path}.weight"), self._maybe(f"{path}.bias"), 1e-5)

    def _linear(self, path: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._get(f"{path}.weight"), self._maybe(f"{path}.bias"))

    def _blocks(self, config: Any, x: torch.Tensor, causal: bool) -> torch.Tensor:
        x = x + self._get("wpe.weight")[: x.shape[1]]
        for i in range(config.n_layer):
            path = f"blocks.{i}"
            qkv = self._linear(f"{path}.attn.c_attn", self._norm(f"{path}.ln_1", x))
            q, k, v = (part.unflatten(-1, (config.n_head, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + self._linear(f"{path}.attn.c_proj", y)
            y = F.gelu(self._linear(f"{path}.mlp.c_fc", self._norm(f"{path}.ln_2", x)))
            x = x + self._linear(f"{path}.mlp.c_proj", y)
        return self._norm("ln_f", x)

    def causal(self, config: Any, ids: torch.Tensor) -> torch.Tensor:
        return self._linear("lm_head", self._blocks(config, self._get("wte.weight")[ids], causal=True))

    def fine(self, config: Any, codebook: int, codes: torch.Tensor) -> torch.Tensor:
        tables = self._parts("wtes.weight")
        x = sum((tables[str(q)][codes[..., q]] for q in range(codebook + 1)), torch.zeros(()))
        head = tables[str(codebook)]
        if not config.tied:
            head = self._parts("lm_heads.weight")[str(codebook - config.n_codes_given)]
        return F.linear(self._blocks(config, x, causal=False), head)

    def _kernel(self, path: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts = self._parts(f"{path}.weight")
        if "x" in parts:
            return parts["x"], self._maybe(f"{path}.bias")
        size = parts["v"].flatten(1).norm(dim=1).view(-1, 1, 1)
        return parts["v"] * (parts["g"] / size), self._maybe(f"{path}.bias")

    def _conv(self, path: str, x: torch.Tensor, dilation: int = 1) -> torch.Tensor:
        weight, bias = self._kernel(path)
        before = (weight.shape[2] - 1) * dilation
        if before:
            x = F.pad(x, (before, 0), mode="reflect")
        return F.conv1d(x, weight, bias, dilation=dilation)

    def decode(self, config: CodecConfig, codes: torch.Tensor) -> torch.Tensor:
        books = self._parts("quantizer.codebooks")
        x = sum((books[str(q)][codes[:, q]] for q in range(config.n_codebooks)), torch.zeros(())).transpose(1, 2)
        x = self._conv("decoder.conv_in", x)
        if config.lstm_layers:
            parts = []
            for i in range(config.lstm_layers):
                path = f"decoder.lstm.layers.{i}"
                biases = self._parts(f"{path}.bias")
                parts += [self._get(f"{path}.weight_ih"), self._get(f"{path}.weight_hh"), biases["ih"], biases["hh"]]
            zero = torch.zeros(config.lstm_layers, 1, x.shape[1])
            options = (True, config.lstm_layers, 0.0, False, False, False)
            y, _, _ = torch.lstm(x.permute(2, 0, 1), (zero, zero), parts, *options)
            x = x + y.permute(1, 2, 0)
        for i, ratio in enumerate(config.ratios):
            weight, bias = self._kernel(f"decoder.stages.{i}.up")
            x = F.conv_transpose1d(F.elu(x), weight, bias, stride=ratio)
            x = x[..., : x.shape[-1] - (weight.shape[2] - ratio)]
            for j in range(config.n_residual_layers):
                path = f"decoder.stages.{i}.residuals.{j}"
                y = self._conv(f"{path}.conv1", F.elu(x), config.dilation_base**j)
                x = self._conv(f"{path}.shortcut", x) + self._conv(f"{path}.conv2", F.elu(y))
        return self._conv("decoder.conv_out", F.elu(x))[0, 0]
