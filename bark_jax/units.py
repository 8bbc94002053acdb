"""Audio → semantic units: the ids that the text stage writes, taken from speech instead.

``units.safetensors`` of a checkpoint folder holds the network and says of which kind it is. "hubert" is for Bark
itself, see `bark_jax.hubert`. "logmel" is bark-nano's: a log mel spectrogram goes through residual convolutions, and
each frame takes its likeliest unit. It sees 0.64 s of audio to both sides, so a clip is read as a whole, and rows of
a batch do not touch each other.

Shapes use: B rows, N samples, T frames of `UnitsConfig.rate_hz`, C channels, U units.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from jax import lax

from bark_jax import hubert
from bark_jax.config import BarkConfig
from bark_jax.files import replacing
from bark_jax.gpt import LayerNorm
from bark_jax.spectra import log_mel
from bark_jax.weights import CheckpointError, fill, names, serialized

FORMAT = "bark-jax-units-1"
"""``format`` in the metadata of ``units.safetensors``."""
BUCKET_S = 2.0
"""Clips are padded to a multiple of it, so that few lengths are compiled."""


@dataclass(frozen=True)
class UnitsConfig:
    """Sizes of the "logmel" network."""

    sample_rate: int = 24_000
    hop: int = 480
    """Samples of a frame; spectra are taken at twice this rate."""
    window: int = 960
    n_mels: int = 80
    width: int = 192
    n_blocks: int = 8
    n_units: int = 500

    @property
    def rate_hz(self) -> float:
        return self.sample_rate / self.hop

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"UnitsConfig.{field.name} is {value!r}: it must be an integer above 0")
        if self.hop % 2 or self.window % (self.hop // 2):
            raise ValueError(
                f"UnitsConfig.hop is {self.hop} and window {self.window}: half of an even hop must divide it"
            )


class Convolution(nnx.Module):
    """y[t] = Σ W[k] x[t + (k - K // 2) · dilation] + b over frames, zeros beyond the ends; weight (K, C_in, C_out)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, stride: int = 1, dilation: int = 1, rngs: nnx.Rngs):
        self.stride, self.dilation = stride, dilation
        std = (kernel * n_in) ** -0.5
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (kernel, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...].astype(jnp.float32)
        reach = self.dilation * (weight.shape[0] // 2)
        y = lax.conv_general_dilated(
            x,
            weight,
            window_strides=(self.stride,),
            padding=((reach, reach),),
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=lax.Precision.HIGHEST,
        )
        return y + self.bias[...].astype(jnp.float32)


class UnitBlock(nnx.Module):
    """x → x + out(gelu(conv(norm(x))))."""

    def __init__(self, width: int, dilation: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, bias=True)
        self.conv = Convolution(width, 2 * width, 3, dilation=dilation, rngs=rngs)
        self.out = Convolution(2 * width, width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.out(jax.nn.gelu(self.conv(self.norm(x)), approximate=True))


class LogMelUnits(nnx.Module):
    """The "logmel" network: audio → logits of units. Dilations go 1, 2, 4, 8, and again."""

    def __init__(self, config: UnitsConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.conv_in = Convolution(config.n_mels, config.width, 5, stride=2, rngs=rngs)
        self.blocks = nnx.List(UnitBlock(config.width, 2 ** (i % 4), rngs=rngs) for i in range(config.n_blocks))
        self.norm = LayerNorm(config.width, bias=True)
        self.head = Convolution(config.width, config.n_units, 1, rngs=rngs)

    def __call__(self, audio: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """Logits (B, T, U) of audio (B, N), N = hop · T; `frames` (B,) int32 are real, zeros follow."""
        return self.head(self.hidden(self.spectrum(audio), frames))

    def hidden(self, x: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """(B, T, C), what `head` makes logits of; `x` (B, 2 T, n_mels) is what `spectrum` gives."""
        rows, length = x.shape[0], x.shape[1] // 2
        frames = jnp.full((rows,), length, jnp.int32) if frames is None else frames
        fine, coarse = (jnp.arange(n) < (frames * k)[:, None] for n, k in ((2 * length, 2), (length, 1)))
        x = self.conv_in(jnp.where(fine[..., None], x, 0))
        for block in self.blocks:  # beyond the end of a row is nothing, as beyond the end of the array
            x = block(jnp.where(coarse[..., None], x, 0))
        return self.norm(x)

    def spectrum(self, audio: jax.Array) -> jax.Array:
        """(B, N) → (B, 2 T, n_mels): log mel, roughly centred, frame i around sample i · hop / 2."""
        config = self.config
        half = config.hop // 2
        before = (config.window - half) // 2
        audio = jnp.pad(audio, ((0, 0), (before, config.window - half - before)))
        return (log_mel(audio, config.window, half, config.n_mels, config.sample_rate) + 5) / 3


Network = LogMelUnits | hubert.Hubert
"""What takes units from audio."""

_KINDS: dict[str, tuple[Any, Any]] = {
    "logmel": (UnitsConfig, LogMelUnits),
    "hubert": (hubert.HubertConfig, hubert.Hubert),
}


def encode(network: Network, audio: np.ndarray) -> np.ndarray:
    """Units of a clip, by a network of any kind.

    Args:
      audio: (N,) floating point, mono, -1 to 1, at the config's rate; at least one frame.

    Returns:
      (floor(N / hop),) int32; of the kind "hubert" see `hubert.encode`.

    Raises:
      ValueError: audio of another shape or type, not finite, or shorter than a frame.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise ValueError(f"audio has shape {audio.shape} and dtype {audio.dtype}: it must be mono floating point, (N,)")
    if not np.isfinite(audio).all():
        raise ValueError("audio holds NaN or infinite samples: all must be finite")
    if isinstance(network, hubert.Hubert):
        return hubert.encode(network, audio)
    config = network.config
    frames = len(audio) // config.hop
    if frames < 1:
        raise ValueError(f"audio has {len(audio)} samples: a unit takes {config.hop}")
    size = int(BUCKET_S * config.rate_hz)
    padded = np.zeros((1, math.ceil(frames / size) * size * config.hop), np.float32)
    padded[0, : frames * config.hop] = audio[: frames * config.hop]
    leaves, tree = jax.tree.flatten(network)
    return np.asarray(hubert.likeliest(tree, leaves, padded, np.array([frames], np.int32)))[0, :frames]


def save(path: str | Path, config: UnitsConfig | hubert.HubertConfig, tensors: Mapping[str, Any]) -> None:
    """Write ``units.safetensors``, completely or not at all."""
    kind = "hubert" if isinstance(config, hubert.HubertConfig) else "logmel"
    metadata = {"format": FORMAT, "kind": kind, "config": json.dumps(dataclasses.asdict(config))}
    arrays = {name: np.ascontiguousarray(np.asarray(tensor)) for name, tensor in tensors.items()}
    with replacing(Path(path)) as part:
        part.write_bytes(serialized(arrays, metadata))


def check_fit(units: UnitsConfig | hubert.HubertConfig, model: BarkConfig) -> None:
    """Raises `CheckpointError` if the units are not those of a model's text stage.

    HuBERT makes 50 units a second but for the first; Bark counts 49.9.
    """
    if units.n_units != model.semantic.vocab_size:
        wanted = model.semantic.vocab_size
        raise CheckpointError(f"units.safetensors has n_units {units.n_units}: the model's is {wanted}")
    rate, slack = model.semantic.rate_hz, 0.2 if isinstance(units, hubert.HubertConfig) else 0.0
    if abs(units.rate_hz - rate) > slack:
        raise CheckpointError(f"units.safetensors has rate_hz {units.rate_hz}: the model's is {rate}")


def load(path: str | Path, *, device: Any = None) -> Network:
    """Read ``units.safetensors`` to a `jax.Device`, None being JAX's default.

    Raises:
      CheckpointError: another format or kind, or tensors that do not fit the file's own config.
      OSError: it cannot be read.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file, or a broken one: {error}") from None
    if about.get("format") != FORMAT or about.get("kind") not in _KINDS:
        given = f"{str(about.get('format'))[:40]!r} and kind {str(about.get('kind'))[:40]!r}"
        raise CheckpointError(f"{path} has format {given}: it must have {FORMAT!r} and one of {', '.join(_KINDS)}")
    sizes, made = _KINDS[about["kind"]]
    try:
        tree = json.loads(about["config"])
        config = sizes(**{name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} has a broken config: {error}") from None
    module = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0)))
    wanted = {name: leaf.shape for name, leaf in names(module).items()}
    wrong = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name]]
    wrong += [name for name in tensors if name not in wanted]
    if wrong:
        raise CheckpointError(f"{path} does not fit its config: {', '.join(wrong[:8])}")
    return fill(module, {name: jax.device_put(tensors[name].astype(np.float32), device) for name in wanted})
