"""Words that are said as a lexicon says, in a tokenizer and on its way through files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import NormalizedString, Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

import models
from bark_jax import lexicon, text
from bark_jax.lexicon import Lexicon, LexiconError
from bark_jax.text import TokenizerError

READINGS = {"it": "ɪT", "it's": "ɪTS", "book": "BʊK", "books": "BʊKS", "'s": "Z", "don't": "DōNT", "o'clock": "əKLɑK"}


def said(string: str, readings: dict[str, str] = READINGS) -> str:
    text_ = NormalizedString(string)
    Lexicon(readings).normalize(text_)
    return text_.normalized


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("it's a book's it, 'book' booking", "ɪTS a BʊKZ ɪT, 'BʊK' booking"),
        ("books, bookshop, rebook; dog's it", "BʊKS, bookshop, rebook; dogZ ɪT"),
        ("don't o'clock's it's's", "DōNT əKLɑKZ ɪTSZ"),
        ("It BOOK bôok 3book book3 it_it", "It BOOK bôok 3BʊK BʊK3 ɪT_ɪT"),
        ("", ""),
        ("' '' 's it'", "' '' 's ɪT'"),
    ],
)
def test_listed_words_are_replaced(written: str, wanted: str) -> None:
    assert said(written) == wanted


def test_one_reading_is_not_read_again() -> None:
    assert said("a b ab", {"a": "B", "b": "A", "ab": "A'B"}) == "B A A'B"


@pytest.mark.parametrize(
    ("readings", "message"),
    [
        (["it"], "lexicon is a list"),
        ({"It": "X"}, "the word 'It'"),
        ({"": "X"}, "the word ''"),
        ({"two words": "X"}, "the word 'two words'"),
        ({"it'": "X"}, 'the word "it\'"'),
        ({"it": ""}, "reads 'it' as ''"),
        ({"it": "ix"}, "reads 'it' as 'ix'"),
        ({"it": "I T"}, "reads 'it' as 'I T'"),
        ({"it": 5}, "reads 'it' as 5"),
        ({"it": "X" * 101}, "1 to 100 characters"),
    ],
)
def test_bad_lexicons(readings: Any, message: str) -> None:
    with pytest.raises(LexiconError, match=message):
        Lexicon(readings)
    tree = json.loads(models.tokenizer_json())
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: .*{message}"):
        text.load_tokenizer(json.dumps({**tree, "lexicon": readings}))


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    signs = sorted({*"abcdefghijklmnopqrstuvwxyz'.,!", *"".join(READINGS.values())})
    ids = {sign: i for i, sign in enumerate(["[UNK]", *signs, *(f"##{sign}" for sign in signs)])}
    made = Tokenizer(tokenizer_models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


@pytest.fixture(scope="module")
def loaded(plain: Tokenizer) -> Tokenizer:
    return text.load_tokenizer(json.dumps({**json.loads(plain.to_str()), "lexicon": READINGS}))


class TestTokenizer:
    """A tokenizer with a lexicon is one without it that is given the readings."""

    @pytest.mark.parametrize("string", ["it's a book, don't book it!", "books", "nothing here.", "zebra's o'clock"])
    def test_ids(self, plain: Tokenizer, loaded: Tokenizer, string: str) -> None:
        wanted = plain.encode(said(string)).ids
        assert loaded.encode(string).ids == wanted
        assert [one.ids for one in loaded.encode_batch_fast([string, "it"] * 20)] == [
            wanted,
            plain.encode("ɪT").ids,
        ] * 20
        assert text.count_tokens(loaded, string) == len(wanted)

    def test_what_is_unknown_is_shown_as_written(self, loaded: Tokenizer) -> None:
        assert text.unknown(loaded, "it's 日本 book's x") == ["日本"]

    def test_a_long_text_takes_linear_time(self, loaded: Tokenizer) -> None:
        words = [f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyzabcd"]
        sizes = (20_000, 200_000)
        seconds = []
        for size in sizes:
            string = " ".join(["it's", *words] * (size // 4000))
            began = time.perf_counter()
            text.count_tokens(loaded, string)
            seconds.append(time.perf_counter() - began)
        assert seconds[1] < 40 * seconds[0], seconds

    def test_a_file(self, plain: Tokenizer, tmp_path: Path) -> None:
        """A lexicon may be empty; one that is not is applied after the file's own normalizer."""
        tree = json.loads(plain.to_str())
        (tmp_path / "tokenizer.json").write_text(json.dumps({**tree, "lexicon": {}}), "utf-8")
        assert text.load_tokenizer(tmp_path / "tokenizer.json").encode("it").ids == plain.encode("it").ids
        small = {"type": "Lowercase"}
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({**tree, "normalizer": small, "lexicon": READINGS}), "utf-8"
        )
        assert text.load_tokenizer(tmp_path / "tokenizer.json").encode("IT").ids == plain.encode("ɪT").ids


def test_of_takes_it_out_of_the_tree() -> None:
    tree: dict[str, Any] = {"model": {}, "lexicon": {"it": "X"}}
    found = lexicon.of(tree)
    assert found is not None and found.readings == {"it": "X"} and tree == {"model": {}}
    assert lexicon.of(tree) is None


def test_no_other_code_can_have_it(tmp_path: Path) -> None:
    """Export says so, and writes nothing."""
    from convert.export import ExportError, export

    path = models.save(tmp_path / "native") / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "lexicon": {"it": "X"}}), "utf-8")
    with pytest.raises(ExportError, match="has a lexicon"):
        export(tmp_path / "native", tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()
