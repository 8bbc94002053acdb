"""Step 5, the three GPTs: ``python -m recipes.bark_nano.gpts begin`` makes what their training starts from.

    texts ─▶ gpts pieces ─▶ tokenizer.json of the package, with how words are said
    sizes, pieces ─▶ first weights (positions that know where to look) ─▶ WORK/first, a native folder
    rows ─▶ gpts voices ─▶ WORK/voices: those of all voices but the bulk's, for coarse and fine
    WORK/first, rows ─▶ bark-jax train text.toml, coarse.toml, fine.toml ─▶ WORK/text, coarse, fine
    products of the three, codec, units, presets, card ─▶ gpts assemble ─▶ WORK/bark-nano, a native folder

Knows the sizes of bark-nano and how it reads; training is `bark_jax.train`, with the settings of the three TOML files
beside this one.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import re
import string
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors
import safetensors.numpy
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bark_jax import library, weights
from bark_jax.config import BarkConfig, CoarseConfig, FineConfig, FineGPTConfig, GPTConfig, SemanticConfig
from bark_jax.files import new_folder, replacing
from bark_jax.hub import STAGES
from bark_jax.lexicon import Lexicon
from bark_jax.text import load_tokenizer
from bark_jax.train import data
from bark_jax.voice import Voice
from recipes.bark_nano import corpus, first_weights, numbers, rows, run
from recipes.bark_nano.readings import readings
from recipes.bark_nano.train_codec import CONFIG as CODEC

MADE = corpus.MADE
SHIPPED = library.BUNDLED_FOLDER
"""The model that comes with the package: its tokenizer, codec, units and card are those of the next."""

TOKENIZER = SHIPPED / "tokenizer.json"
N_PIECES = 300
"""Of sounds: single ones, beginnings and continuations of syllables; of text: letters, digits and signs."""
UNKNOWN = "[UNK]"
"""A sign that the corpus does not have, or a word with such a letter."""

N_UNITS, PIECES_PER_UNIT = 500, 0.18
"""Semantic ids, and pieces of the corpus's texts for one of them."""

ALIKE = {"[‘’]": "'", "[—–]": "-", "…": "...", '["“”«»]': ""}
"""Typographers' signs, and what they are read as."""


def normalizer() -> normalizers.Normalizer:
    """Small letters without accents; typographers' signs become what is like them, and numbers words."""
    return normalizers.Sequence(
        [
            *(normalizers.Replace(Regex(pattern), sign) for pattern, sign in ALIKE.items()),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            *(normalizers.Replace(Regex(pattern), words) for pattern, words in numbers.rules()),
        ]
    )


def learn_pieces(texts: Iterable[str], words: Mapping[str, str], n: int = N_PIECES) -> str:
    """The text of a ``tokenizer.json``: WordPieces of how texts are said, by a lexicon of words and readings.

    Sounds, and not letters: a small network has too much to find out about English spelling. Pieces, and not single
    signs: it reads what comes before a place of its prompt, and how a letter or a sound is said is decided by those
    after it as well (`benchmarks/NOTES.md`, "What bark-nano reads").
    """
    made = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    made.normalizer = normalizer()
    splitting = [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(True)]
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.PreTokenizer.custom(Lexicon(words)), *splitting])
    trainer = trainers.WordPieceTrainer(
        vocab_size=n,
        special_tokens=[UNKNOWN],
        continuing_subword_prefix="##",
        initial_alphabet=list(string.ascii_lowercase),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.pre_tokenizer = pre_tokenizers.Sequence(splitting)  # the other cannot be written
    return json.dumps({**json.loads(made.to_str()), "lexicon": dict(words)}, ensure_ascii=False, separators=(",", ":"))


def pieces(tokens: Path, path: Path) -> None:
    """Write the tokenizer of the texts of rows."""
    tables = [pyarrow.parquet.read_table(file, columns=["text", "split"]).to_pylist() for file in data.find([tokens])]
    texts = [row["text"] for table in tables for row in table if row["split"] == "train"]
    made = learn_pieces(texts, readings(normalizer().normalize_str(text) for text in texts))
    with replacing(path) as part:
        part.write_text(made, "utf-8")


@functools.cache
def config() -> BarkConfig:
    """The sizes of bark-nano.

    Prompts are short, because most of what a small machine computes are prompts: 112 pieces of text (the longest of the
    corpus has 92, 151 characters, and lasts 9.4 s), 2 s of codes, and 0.6 s of them at a time.
    """
    n_text = load_tokenizer(TOKENIZER).get_vocab_size()
    semantic = SemanticConfig(
        network=GPTConfig(6, 6, 192, N_UNITS + 3 + n_text, N_UNITS + 1, block_size=112 + 480),
        text_length=112,
        text_offset=N_UNITS + 1,
        text_pad_token=N_UNITS + 1 + n_text,
        infer_token=N_UNITS + 2 + n_text,
        vocab_size=N_UNITS,
        pad_token=N_UNITS,
        rate_hz=50.0,
        max_tokens=480,
    )
    n_codes = 2 * CODEC.codebook_size
    coarse = CoarseConfig(
        network=GPTConfig(9, 5, 160, N_UNITS + n_codes + 2, N_UNITS + n_codes, block_size=152 + 300 + 90),
        semantic_length=152,  # of 300 tokens before, of the 90 that come, and of 0.4 s after them
        semantic_pad_token=N_UNITS + n_codes,
        infer_token=N_UNITS + n_codes + 1,
        code_offset=N_UNITS,
        semantic_rate_hz=50.0,
        max_history=300,
        window=90,
    )
    fine = FineConfig(network=FineGPTConfig(6, 6, 192, 1025, 1025, block_size=192), window=192, hop=96, max_history=96)
    return BarkConfig(semantic, coarse, fine, CODEC, fingerprint="bark-nano-2")


SHARPER = {"semantic": 0.7 / 0.4, "fine": 0.5 / 0.0625}
"""Shipped logits over trained ones. Generation's default temperature of 0.7 draws text as 0.4 would, which fewer words
suffer from; that of fine, 0.5, as 0.06: codes that it does not know are left out then (`README.md`, "The GPTs"). What
is shipped is trained on with these as `sharpness`: ``training.json``."""

NAMED = re.compile(r"[ab][fm]_\w+")
"""Kokoro's names of its English voices: American or British, female or male. The presets are some of them."""
PROMPT_S = (2.5, 8.0)
"""Length of the clip that a preset is: coarse hears its last 2 s, fine its last 1.3."""
PROMPTS = MADE / "prompts.json"
"""The presets: voices, and the id of the clip of each, as `prompts` chose them."""


def made_or_shipped(work: Path, network: str) -> Path:
    """The ``NETWORK.safetensors`` of codec or units that a model gets: that of WORK/NETWORK, else the one shipped."""
    own = work / network / f"{network}.safetensors"
    return own if own.is_file() else SHIPPED / own.name


def settings(codec: Path, units: Path) -> BarkConfig:
    """`config`, with a fingerprint of its own if the codes or the units are not those that are shipped: a voice prompt
    of one model would be noise to the other.
    """
    ours = rows.made_from(SHIPPED / "codec.safetensors", SHIPPED / "units.safetensors")
    given = rows.made_from(codec, units)
    if given == ours:
        return config()
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    return dataclasses.replace(config(), fingerprint=f"{config().fingerprint}-{digest[:8]}")


def begin(
    folder: Path,
    trained: Path | None = None,
    *,
    codec: Path = SHIPPED / "codec.safetensors",
    meant: np.ndarray | None = None,
) -> None:
    """Write a native folder to train from.

    Args:
      trained: a folder with some of ``semantic.safetensors``, ``coarse.safetensors``, ``fine.safetensors`` to go on
        from; the others, and without it all, are first weights (see `first_weights`).
      meant: what `meaning` gives, if `trained` knows other units.
    """
    settings = config()
    with weights.Writer(folder, settings, TOKENIZER.read_text("utf-8")) as writer:
        for network in STAGES.values():
            path = None if trained is None else trained / f"{network}.safetensors"
            if path is not None and path.is_file():
                tensors = _trained(path, network)
                writer.write(network, tensors if meant is None else _translated(tensors, network, meant))
                continue
            module = weights.build(settings, network)
            random = {name: np.asarray(x) for name, x in weights.names(module).items()}
            writer.write(network, first_weights.gpt(random, settings, network, PIECES_PER_UNIT))
        writer.write("codec", safetensors.numpy.load_file(codec))


def assemble(
    folder: Path,
    networks: Mapping[str, Mapping[str, np.ndarray]],
    voices: Mapping[str, Voice],
    *,
    codec: Path = SHIPPED / "codec.safetensors",
    units: Path = SHIPPED / "units.safetensors",
) -> None:
    """Write bark-nano: three GPTs (float32 tensors by name) in bfloat16, codec and units, voices, and the card."""
    model = settings(codec, units)
    with new_folder(folder) as made:
        with weights.Writer(made, model, TOKENIZER.read_text("utf-8")) as writer:
            for network, tensors in networks.items():
                tensors = _sharper(tensors, SHARPER.get(network, 1))
                low = {
                    name: x.astype(weights.DTYPES["bfloat16"]) if weights.is_matrix(network, x.shape) else x
                    for name, x in tensors.items()
                }
                writer.write(network, low)
            writer.write("codec", safetensors.numpy.load_file(codec))
            for file in (units, SHIPPED / "README.md", SHIPPED / "training.json"):
                writer.keep(file)
        (made / "voices").mkdir()
        for name, voice in voices.items():
            voice.check(model)
            voice.save(made / "voices" / f"{name}.safetensors")


def _sharper(tensors: Mapping[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    """Tensors of a network whose logits are `factor` times as large.

    Fine's heads are its tables of inputs as well, so what goes into them is scaled.
    """
    scaled = ["lm_head.weight"] if "lm_head.weight" in tensors else ["ln_f.weight", "ln_f.bias"]
    return {name: np.float32(factor) * x if name in scaled else x for name, x in tensors.items()}


def _trained(path: Path, network: str) -> dict[str, np.ndarray]:
    """Of a network that `assemble` wrote, the tensors that it was given; with new blocks, if `config` has more now."""
    part = getattr(config(), network)
    with safetensors.safe_open(path, framework="numpy") as file:
        n_written = min(first_weights.n_blocks(file.keys()), part.network.n_layer)
    written = dataclasses.replace(part, network=dataclasses.replace(part.network, n_layer=n_written))
    tensors = weights.read_network(path, dataclasses.replace(config(), **{network: written}), network)
    return first_weights.deeper(_sharper(tensors, 1 / SHARPER.get(network, 1)), part.network.n_layer)


def meaning(before: Path, now: Path) -> np.ndarray:
    """(U, U) float32: of each unit of one folder of rows, the shares of the other's units in the same frames.

    Raises:
      ValueError: the folders have no clip in common.
    """
    old = {row["id"]: row["semantic"] for row in _rows(before, ["id", "semantic"])}
    counts = np.zeros((N_UNITS, N_UNITS))
    for row in _rows(now, ["id", "semantic"]):
        if row["id"] in old:
            n = min(len(old[row["id"]]), len(row["semantic"]))
            np.add.at(counts, (row["semantic"][:n], old[row["id"]][:n]), 1)
    if not counts.any():
        raise ValueError(
            f"{before} and {now} have no clip in common: nothing says what the units of one are in the other"
        )
    counts += counts.sum(axis=0) / counts.sum()  # of a unit that never occurred
    return (counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def _rows(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for file in data.find([folder]):
        yield from pyarrow.parquet.read_table(file, columns=list(columns)).to_pylist()


def _translated(tensors: Mapping[str, np.ndarray], network: str, meant: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors whose vectors of units are those of the units before, in the shares of `meant`."""
    names = {"semantic": ("wte.weight", "lm_head.weight"), "coarse": ("wte.weight",), "fine": ()}[network]
    made = {name: np.concatenate([meant @ tensors[name][: len(meant)], tensors[name][len(meant) :]]) for name in names}
    return {**tensors, **made}


def products(work: Path) -> dict[str, dict[str, np.ndarray]]:
    """The products of the three runs; of a stage without one, what is shipped. Prints which."""
    out = {}
    for stage, network in STAGES.items():
        made = work / stage / f"{network}.safetensors"
        print(f"{network}: {made if made.is_file() else 'as shipped'}", flush=True)
        if made.is_file():
            out[network] = weights.read_network(made, config(), network)
        else:
            out[network] = _trained(SHIPPED / made.name, network)
    return out


def without_bulk(tokens: Path, folder: Path) -> None:
    """Write the rows of all other voices, for the stages that learn voices: 69 in 100 are `corpus.BULK`'s.

    It teaches the text stage words, which are nobody's; the other two would learn one voice more than all others.
    """
    with new_folder(folder) as made:
        for file in data.find([tokens]):
            table = pyarrow.parquet.read_table(file)
            others = [voice != corpus.BULK for voice in table["voice"].to_pylist()]
            if any(others):
                pyarrow.parquet.write_table(table.filter(pyarrow.array(others)), made / file.name)


def as_voice(row: Mapping[str, Any], model: BarkConfig) -> Voice:
    """A clip of the corpus as a voice prompt of a model."""
    fine = np.array(row["fine"], np.int32)
    return Voice(np.array(row["semantic"], np.int32), fine[:2], fine, model=model.fingerprint)


def prompt_rows(tokens: Path) -> dict[str, list[dict[str, Any]]]:
    """Of each `NAMED` voice, the clips of the training set that may be its preset: `PROMPT_S` long."""
    found: dict[str, list[dict[str, Any]]] = {}
    low, high = (seconds * config().semantic.rate_hz for seconds in PROMPT_S)
    for file in sorted(tokens.glob("said-*.parquet")):
        table = pyarrow.parquet.read_table(file, columns=["id", "voice", "split", "semantic", "fine"])
        chosen = [NAMED.fullmatch(name) is not None for name in table["voice"].to_pylist()]
        for row in table.filter(pyarrow.array(chosen)).to_pylist():
            if row["split"] == "train" and low <= len(row["semantic"]) <= high:
                found.setdefault(row["voice"], []).append(row)
    return found


def presets(tokens: Path, model: BarkConfig) -> dict[str, Voice]:
    """The voices and clips of `PROMPTS`.

    Raises:
      ValueError: the rows lack one of these clips.
    """
    ids = json.loads(PROMPTS.read_text("utf-8"))
    found = {row["id"]: as_voice(row, model) for clips in prompt_rows(tokens).values() for row in clips}
    if missing := [id for id in ids.values() if id not in found]:
        raise ValueError(f"{tokens} lacks the presets' clips {', '.join(missing)}: see `recipes.bark_nano.prompts`")
    return {name: found[id] for name, id in ids.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.gpts", description="The three GPTs.")
    parser.add_argument("step", choices=("pieces", "begin", "voices", "assemble"))
    parser.add_argument("--work", type=Path, default=corpus.WORK)
    parser.add_argument("--trained", type=Path, help="of begin: a folder with trained networks to go on from")
    parser.add_argument(
        "--before", type=Path, metavar="ROWS", help="of begin: rows with the units that the trained networks know"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a new folder; default: WORK/first of begin, WORK/voices of voices, WORK/bark-nano of assemble",
    )
    parser.add_argument("--rows", type=Path, default=MADE / "rows", help="the corpus as tokens; default: made/rows")
    options = parser.parse_args(argv)

    def step() -> None:
        codec, units = (made_or_shipped(options.work, network) for network in ("codec", "units"))
        if options.step in ("voices", "assemble"):
            rows.check(options.rows, codec, units)
        if options.step == "pieces":
            pieces(options.rows, TOKENIZER)
        elif options.step == "begin":
            meant = None if options.before is None else meaning(options.before, options.rows)
            begin(options.out or options.work / "first", options.trained, codec=codec, meant=meant)
        elif options.step == "voices":
            without_bulk(options.rows, options.out or options.work / "voices")
        else:
            voices = presets(options.rows, settings(codec, units))
            out = options.out or options.work / "bark-nano"
            assemble(out, products(options.work), voices, codec=codec, units=units)

    return run(step)


if __name__ == "__main__":
    sys.exit(main())
