"""EnCodec's own torch network at any size, with random weights that behave, for tests of `bark_jax.codec`.

Gives models, their tensors under the names of `bark_jax`, and a margin of every code decision in float64.
Not a converter: that one lives in ``convert`` and is tested against files.
"""

from __future__ import annotations

import copy
import importlib.machinery
import sys
import types
import warnings

import jax.numpy as jnp
import numpy as np
import torch
import transformers  # noqa: F401  before the stand-in below, which it would take for the real torchaudio
from flax import nnx

from bark_jax.codec import Codec
from bark_jax.config import CodecConfig

if "torchaudio" not in sys.modules:  # encodec imports it for resampling files, which no test does
    stand_in = types.ModuleType("torchaudio")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stand_in

from encodec import EncodecModel
from encodec.modules import SConv1d, SConvTranspose1d, SEANetDecoder, SEANetEncoder
from encodec.modules.seanet import SEANetResnetBlock
from encodec.quantization import ResidualVectorQuantizer

BANDWIDTH = 6.0
"""kbit/s that Bark uses; with 1,024 entries at 75 frames per second, 8 codebooks."""


def noise(n: int, seed: int) -> np.ndarray:
    """A clip (n,) whose loudness and colour change, so that codes vary."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n + 64)
    smooth = np.convolve(x, np.ones(16) / 4, mode="same")
    t = np.arange(n + 64) / 24_000
    blend = 0.5 + 0.5 * np.sin(2 * np.pi * 3.7 * t)
    loud = 0.05 + 0.3 * np.abs(np.sin(2 * np.pi * 1.3 * t + seed))
    return ((blend * x + (1 - blend) * smooth) * loud)[:n].astype(np.float32)


def networks(config: CodecConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Encoder and decoder: encodec's own, or of its layers where `config` has widths that its rule does not give."""
    if not config.widths and not config.residual_layers:
        options = {
            "channels": 1,
            "dimension": config.dimension,
            "n_filters": config.n_filters,
            "ratios": list(config.ratios),
            "norm": "weight_norm",
            "causal": True,
            "kernel_size": config.kernel_size,
            "last_kernel_size": config.last_kernel_size,
            "residual_kernel_size": config.residual_kernel_size,
            "n_residual_layers": config.n_residual_layers,
            "dilation_base": config.dilation_base,
            "compress": config.compress,
            "lstm": config.lstm_layers,
            "true_skip": False,
        }
        return SEANetEncoder(**options), SEANetDecoder(**options)
    assert config.lstm_layers == 0
    kind = {"norm": "weight_norm", "causal": True}

    def units(stage: int) -> list[torch.nn.Module]:
        kernels = [config.residual_kernel_size, 1]
        options = {"compress": config.compress, "true_skip": False, **kind}
        return [
            SEANetResnetBlock(config.channels[stage + 1], kernels, [config.dilation_base**j, 1], **options)
            for j in range(config.residuals[stage])
        ]

    encoder: list[torch.nn.Module] = [SConv1d(1, config.channels[-1], config.kernel_size, **kind)]
    decoder: list[torch.nn.Module] = [SConv1d(config.dimension, config.channels[0], config.kernel_size, **kind)]
    for i, ratio in enumerate(config.ratios):
        wide, narrow = config.channels[i : i + 2]
        up = SConvTranspose1d(wide, narrow, 2 * ratio, ratio, trim_right_ratio=1, **kind)
        decoder += [torch.nn.ELU(), up, *units(i)]
    for i, ratio in reversed(list(enumerate(config.ratios))):
        wide, narrow = config.channels[i : i + 2]
        encoder += [*units(i), torch.nn.ELU(), SConv1d(narrow, wide, 2 * ratio, ratio, **kind)]
    encoder += [torch.nn.ELU(), SConv1d(config.channels[0], config.dimension, config.last_kernel_size, **kind)]
    decoder += [torch.nn.ELU(), SConv1d(config.channels[-1], 1, config.last_kernel_size, **kind)]
    return Layers(encoder, config), Layers(decoder, config)


class Layers(torch.nn.Module):
    """A list of layers as encodec has them."""

    def __init__(self, layers: list[torch.nn.Module], config: CodecConfig):
        super().__init__()
        self.model, self.ratios = torch.nn.Sequential(*layers), config.ratios

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def reference(config: CodecConfig, *, seed: int = 0, seconds: float = 30.0) -> EncodecModel:
    """EncodecModel of this size with random weights; codebooks drawn from residuals of encoded noise."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm is deprecated in torch, not in EnCodec's files
        model = EncodecModel(
            *networks(config),
            ResidualVectorQuantizer(
                dimension=config.dimension, n_q=config.n_codebooks, bins=config.codebook_size, kmeans_init=False
            ),
            target_bandwidths=[BANDWIDTH],
            sample_rate=config.sample_rate,
            channels=1,
        )
    model.eval().requires_grad_(False)
    if config.codebook_size == 1024 and config.frame_rate == 75:
        model.set_target_bandwidth(BANDWIDTH)
    for name, tensor in model.named_parameters():
        if name.endswith("weight_g"):
            # torch's default weights shrink a signal to a third per layer; this keeps its size and its variety.
            tensor.mul_(1.7)
        elif name.endswith("bias"):
            tensor.mul_(0.5)
    # Sizes of the encoder's output and the decoder's audio are set to about 1 and 0.2, as in a trained codec.
    clip = torch.from_numpy(noise(int(seconds * config.sample_rate), seed=10_000 + seed))[None, None]
    last = model.encoder.model[-1].conv.conv
    out = model.encoder(clip)
    scale = out.std()
    last.weight_g.div_(scale)
    last.bias.div_(scale)
    residual = model.encoder(clip)[0].T  # (F, D)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.quantizer.vq.layers:
        codebook = layer._codebook
        middle = residual.mean(dim=0)
        spread = (residual - middle).norm(dim=1).mean()
        pick = torch.randint(len(residual), (config.codebook_size,), generator=generator)
        entry = residual[pick] - middle
        entry = entry + 0.2 * spread / config.dimension**0.5 * torch.randn(entry.shape, generator=generator)
        # All equally far from the middle: otherwise the few entries nearest to it win everywhere.
        codebook.embed.copy_(middle + 0.6 * spread * entry / entry.norm(dim=1, keepdim=True))
        residual = residual - codebook.decode(codebook.encode(residual))
    codes = torch.randint(config.codebook_size, (config.n_codebooks, 1, 100), generator=generator)
    scale = model.decoder(model.quantizer.decode(codes)).std() / 0.2
    last = model.decoder.model[-1].conv.conv
    last.weight_g.div_(scale)
    last.bias.div_(scale)
    for module in model.modules():  # weight norm writes `weight` before each forward; write it once for double()
        if hasattr(module, "weight_g"):
            module.weight = torch._weight_norm(module.weight_v, module.weight_g, 0)
    return model


def tensors(model: EncodecModel, config: CodecConfig) -> dict[str, np.ndarray]:
    """The model's tensors under the names and layouts of `bark_jax.codec.Codec`."""
    found: dict[str, np.ndarray] = {
        "quantizer.codebooks": np.stack([layer.codebook.numpy() for layer in model.quantizer.vq.layers])
    }

    def conv(name: str, module: torch.nn.Module, order: tuple[int, int, int]) -> None:
        weight = torch._weight_norm(module.weight_v, module.weight_g, 0)
        found[f"{name}.weight"] = weight.permute(order).contiguous().numpy()
        found[f"{name}.bias"] = module.bias.numpy()

    def residual(name: str, module: torch.nn.Module) -> None:
        conv(f"{name}.conv1", module.block[1].conv.conv, (2, 1, 0))
        conv(f"{name}.conv2", module.block[3].conv.conv, (2, 1, 0))
        conv(f"{name}.shortcut", module.shortcut.conv.conv, (2, 1, 0))

    def lstm(name: str, module: torch.nn.Module) -> None:
        for i in range(config.lstm_layers):
            own = f"{name}.layers.{i}"
            found[f"{own}.weight_ih"] = getattr(module.lstm, f"weight_ih_l{i}").numpy()
            found[f"{own}.weight_hh"] = getattr(module.lstm, f"weight_hh_l{i}").numpy()
            found[f"{own}.bias"] = (
                getattr(module.lstm, f"bias_ih_l{i}") + getattr(module.lstm, f"bias_hh_l{i}")
            ).numpy()

    layers = iter(layer for layer in model.encoder.model if not isinstance(layer, torch.nn.ELU))
    conv("encoder.conv_in", next(layers).conv.conv, (2, 1, 0))
    for i in range(len(config.ratios)):
        for j in range(config.residuals[len(config.ratios) - 1 - i]):
            residual(f"encoder.stages.{i}.residuals.{j}", next(layers))
        conv(f"encoder.stages.{i}.down", next(layers).conv.conv, (2, 1, 0))
    if config.lstm_layers:
        lstm("encoder.lstm", next(layers))
    conv("encoder.conv_out", next(layers).conv.conv, (2, 1, 0))

    layers = iter(layer for layer in model.decoder.model if not isinstance(layer, torch.nn.ELU))
    conv("decoder.conv_in", next(layers).conv.conv, (2, 1, 0))
    if config.lstm_layers:
        lstm("decoder.lstm", next(layers))
    for i in range(len(config.ratios)):
        conv(f"decoder.stages.{i}.up", next(layers).convtr.convtr, (0, 2, 1))
        for j in range(config.residuals[i]):
            residual(f"decoder.stages.{i}.residuals.{j}", next(layers))
    conv("decoder.conv_out", next(layers).conv.conv, (2, 1, 0))
    return found


def ours(model: EncodecModel, config: CodecConfig) -> Codec:
    """A `Codec` with the model's weights; every tensor must be used."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0))))
    left = tensors(model, config)
    filled = []
    for path, leaf in nnx.to_flat_state(abstract):
        value = left.pop(".".join(map(str, path)))
        assert value.shape == leaf.shape, path
        filled.append((path, leaf.replace(jnp.asarray(value))))
    assert not left, sorted(left)
    return nnx.merge(graph, nnx.from_flat_state(filled))


def reference_codes(model: EncodecModel, audio: np.ndarray) -> np.ndarray:
    """Codes (Q, F) of one clip (N,)."""
    ((codes, _),) = model.encode(torch.from_numpy(audio)[None, None])
    return codes[0].numpy()


def reference_audio(model: EncodecModel, codes: np.ndarray) -> np.ndarray:
    """Audio (hop · F,) of codes (Q, F)."""
    return model.decode([(torch.from_numpy(codes.astype(np.int64))[None], None)])[0, 0].numpy()


def margins(model: EncodecModel, audio: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Relative gap (Q, F), in float64, between the two nearest entries when all earlier codes are as given."""
    double = copy.deepcopy(model).double()
    residual = double.encoder(torch.from_numpy(audio)[None, None].double())[0].T
    gaps = []
    for layer, code in zip(double.quantizer.vq.layers, codes, strict=False):
        distance = torch.cdist(residual, layer.codebook, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        two = torch.topk(distance, 2, largest=False).values
        gaps.append(((two[:, 1] - two[:, 0]) / two[:, 1]).numpy())
        residual = residual - layer.codebook[torch.from_numpy(code.astype(np.int64))]
    return np.stack(gaps)
