"""Text → the ids of the first stage: the tokenizer, and the fixed-length row that the semantic prompt takes.

Takes a `tokenizers.Tokenizer` and a `SemanticConfig`, gives ``int32 (text_length,)``. Bark's tokenizer is the WordPiece
of ``bert-base-multilingual-cased``; any other tokenizer of the ``tokenizers`` library works the same way. This file
knows nothing of speech, voices or models, and it changes no character of a text but white space: ``[laughs]``, ``♪``,
CAPITALS, ``—`` and ``...`` carry meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bark_jax import lexicon
from bark_jax.config import SemanticConfig

MAX_TOKENIZER_BYTES = 32 * 2**20
"""Largest vocabulary or ``tokenizer.json`` that is read. Bark's are 1.0 and 1.7 MB."""

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Tokens that BERT finds in a text as they stand, before it splits words."""


class TextError(ValueError):
    """A text that cannot be spoken as it is; the message says what to change."""


class TokenizerError(ValueError):
    """A vocabulary or ``tokenizer.json`` that is broken, too large, or of another model."""


def build_tokenizer(vocabulary: str | Path | Iterable[str], config: SemanticConfig | None = None) -> Tokenizer:
    """The cased BERT tokenizer (WordPiece) of a vocabulary.

    Args:
      vocabulary: path of a ``vocab.txt`` (UTF-8, one token per line, the line number is the id), or its lines.
      config: if given, the vocabulary must have ``config.text_vocab_size`` tokens (119,547 for Bark).

    Returns:
      A tokenizer that gives the ids of ``transformers.BertTokenizer(vocab=..., do_lower_case=False)``. Control
      characters (NUL and the other C0 and C1 codes, zero-width characters, U+FFFD) are dropped, Chinese characters
      stand alone, accents and capitals are kept, a word of more than 100 characters or without pieces is ``[UNK]``.

    Raises:
      TokenizerError: not UTF-8, too large, an empty or repeated token, no ``[UNK]``, or the wrong size.
      OSError: the file cannot be read.
    """
    if isinstance(vocabulary, str | Path):
        source = str(vocabulary)
        text = _read(Path(vocabulary))
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        if lines[-1] == "":  # the newline that ends the last line
            lines.pop()
    else:
        source = "the vocabulary"
        lines = list(vocabulary)
    ids: dict[str, int] = {}
    for number, token in enumerate(lines):
        if not isinstance(token, str) or not token:
            raise TokenizerError(f"{source}: line {number + 1} is {token!r}; every line must hold one token")
        if token in ids:
            raise TokenizerError(
                f"{source}: line {number + 1} repeats {token!r} of line {ids[token] + 1}; every token has one id"
            )
        ids[token] = number
    if "[UNK]" not in ids:
        raise TokenizerError(f"{source} has no token [UNK]: it is not the vocab.txt of a BERT model")
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=False
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS if token in ids]
    )
    _check(tokenizer, config, source)
    return tokenizer


def load_tokenizer(source: str | Path, config: SemanticConfig | None = None) -> Tokenizer:
    """Read a ``tokenizer.json`` of the ``tokenizers`` library.

    Args:
      source: a path, or the JSON text itself (a str that starts with ``{``). It may have a `lexicon`.
      config: if given, the tokenizer must have ``config.text_vocab_size`` ids.

    Returns:
      The tokenizer, with truncation and padding switched off: `encode` does both, and never cuts silently. One with a
      lexicon cannot be copied, pickled or written by the ``tokenizers`` library.

    Raises:
      TokenizerError: not a tokenizer, larger than `MAX_TOKENIZER_BYTES`, ids that are not 0 .. n-1, the wrong size, or
        a lexicon that is none.
      OSError: the file cannot be read.
    """
    if isinstance(source, str) and source.lstrip().startswith("{"):
        text, name = source, "tokenizer.json"
        if len(text) > MAX_TOKENIZER_BYTES:
            raise TokenizerError(f"{name} has {len(text):,} characters: the limit is {MAX_TOKENIZER_BYTES:,}")
    else:
        text, name = _read(Path(source)), str(source)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name} is not valid JSON: {error}") from None
    kind = tree.get("model", {}) if isinstance(tree, dict) else None
    if not isinstance(kind, dict) or "vocab" not in kind:
        raise TokenizerError(f"{name} is not a tokenizer: a tokenizer.json is an object with model.vocab")
    try:
        readings = lexicon.of(tree)
    except lexicon.LexiconError as error:
        raise TokenizerError(f"{name}: {error}") from None
    try:
        tokenizer = Tokenizer.from_str(text if readings is None else json.dumps(tree))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library derives from BaseException
        raise TokenizerError(f"{name} is not a tokenizer of the tokenizers library: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if readings is not None:
        after = [] if tokenizer.pre_tokenizer is None else [tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.PreTokenizer.custom(readings), *after])
    _check(tokenizer, config, name)
    return tokenizer


def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Number of ids that `text` becomes (0 if it is empty), to compare with ``SemanticConfig.text_length``.

    Raises:
      TextError: not a str, or a lone surrogate in it.
    """
    return len(_encode(tokenizer, _clean(text)))


def unknown(tokenizer: Tokenizer, text: str) -> list[str]:
    """What of a text the tokenizer has no ids for, each once, in order.

    Raises:
      TextError: as `count_tokens`.
    """
    token = getattr(tokenizer.model, "unk_token", None)
    if token is None:
        return []
    clean = _clean(text)
    encoding, id_ = _encode(tokenizer, clean), tokenizer.token_to_id(token)
    found = [clean[start:end] for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True) if i == id_]
    return list(dict.fromkeys(found))


def encode(tokenizer: Tokenizer, config: SemanticConfig, text: str) -> np.ndarray:
    r"""The text row of the semantic prompt.

    Runs of white space become one space, as in Suno's code (``\\s`` of Python's ``re``, so U+001C .. U+001F and U+00A0
    count as space), no special tokens are put around the text, and each id is moved by ``text_offset``.

    Args:
      text: any characters but lone surrogates. Control characters go the way of the tokenizer: Bark's drops them.

    Returns:
      (text_length,) int32: ids from ``text_offset`` to ``text_pad_token - 1``, then ``text_pad_token`` to the end.

    Raises:
      TextError: not a str, nothing to say, more than ``text_length`` tokens, a lone surrogate, or an id that is
        outside the model's text vocabulary.
    """
    clean = _clean(text)
    if not clean:
        raise TextError(f"The text is {_excerpt(text)!r}: it must hold at least one character that is not white space")
    encoding = _encode(tokenizer, clean)
    ids = np.asarray(encoding.ids, dtype=np.int64)
    if len(ids) == 0:
        raise TextError(
            f"The text {_excerpt(clean)!r} has no tokens: the tokenizer drops control and zero-width characters, and "
            "nothing else is left to say"
        )
    if len(ids) > config.text_length:
        cut = encoding.offsets[config.text_length][0]
        start = clean.rfind(" ", 0, cut + 1) + 1  # show the whole word that the limit falls in
        raise TextError(
            f"The text has {len(ids)} tokens, {len(ids) - config.text_length} more than the limit of "
            f"{config.text_length}; what does not fit starts at {_excerpt(clean[max(start, cut - 40) :])!r}. Use "
            "shorter texts, or generate with split=True"
        )
    if ids.max() >= config.text_vocab_size:
        token = tokenizer.id_to_token(int(ids.max()))
        raise TextError(
            f"The tokenizer gives id {ids.max()} ({token!r}): the model knows ids 0 to {config.text_vocab_size - 1}. "
            "Use the tokenizer that belongs to the model"
        )
    row = np.full(config.text_length, config.text_pad_token, np.int32)
    row[: len(ids)] = ids + config.text_offset
    return row


def one_spaced(text: str) -> str:
    """White space of any kind and length made one space, and none around the text; as `encode` does."""
    return " ".join(text.split())


def check(text: str) -> None:
    """Raises `TextError` unless `text` is a str without lone surrogates."""
    if not isinstance(text, str):
        raise TextError(f"The text is a {type(text).__name__}: it must be a str (for several texts, a list of str)")
    surrogate = re.search("[\ud800-\udfff]", text)
    if surrogate:
        raise TextError(
            f"The text has a lone surrogate U+{ord(surrogate[0]):04X} at position {surrogate.start()}: half of a "
            "character, as left by a wrong decoding. Decode the source as UTF-8, or remove it"
        )


def _clean(text: str) -> str:
    check(text)
    return one_spaced(text)


def _encode(tokenizer: Tokenizer, text: str) -> Encoding:
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise TokenizerError("The tokenizer truncates or pads: call no_truncation() and no_padding() on it")
    return tokenizer.encode(text, add_special_tokens=False)


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


def _check(tokenizer: Tokenizer, config: SemanticConfig | None, source: str) -> None:
    ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
    if ids != set(range(len(ids))):
        raise TokenizerError(f"{source} has {len(ids)} different ids: they must be 0 to {len(ids) - 1} without gaps")
    if config is not None and len(ids) != config.text_vocab_size:
        raise TokenizerError(
            f"{source} has {len(ids):,} tokens: the model's text vocabulary has {config.text_vocab_size:,}"
            + (" (vocab.txt of bert-base-multilingual-cased)" if config.text_vocab_size == 119_547 else "")
        )


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(data) > MAX_TOKENIZER_BYTES:
        raise TokenizerError(f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes, the limit for a tokenizer")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text: {error}") from None
