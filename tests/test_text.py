"""`bark_jax.text`: ids equal to the reference tokenizer, and an error for every text that cannot be spoken."""

import json
import random
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bark_jax import config, text
from bark_jax.text import TextError, TokenizerError

VOCABULARY = Path(__file__).parents[1] / "../shared/data/mbert/vocab.txt"
SUNO = config.suno(config.SMALL).semantic

LANGUAGES = {
    "en": "Hello, my name is Suno. And, uh — and I like pizza. [laughs] But I've 2 more interests: tic-tac-toe, chess!",
    "de": "Übermäßig große Äpfel kosten 3,50 € – „Straßenbahn“ fährt um 8.15 Uhr, nicht wahr?",
    "es": "¿Cómo estás, niño? ¡Mañana será otro día! El pingüino vivió en España 1.000 años.",
    "fr": "L'été dernier, où étiez-vous ? J'ai reçu « la lettre » à Noël ; ça m'a plu, œuvre d'art.",
    "hi": "नमस्ते, आप कैसे हैं? मुझे हिन्दी में बात करना अच्छा लगता है। १२३ क्षत्रिय।",
    "it": "Perché non è così? Città, virtù, e un po' di caffè costano 4,20 euro.",
    "ja": "こんにちは、私の名前はスノです。ﾊﾝｶｸカタカナと漢字、「括弧」が２つあります。",
    "ko": "안녕하세요, 제 이름은 수노입니다. 한국어로 말하는 것을 좋아해요! 3월 1일",
    "pl": "Zażółć gęślą jaźń, proszę pana. Chrząszcz brzmi w trzcinie w Szczebrzeszynie.",
    "pt": "Não há pão na estação, João? Amanhã às 7h30 haverá avó, avô e coração.",
    "ru": "Здравствуйте, меня зовут Суно. Ёжик съел щуку, объём — 5 м³.",
    "tr": "İstanbul'da ıhlamur çayı içtim; ağaçlar güzel, şöyle böyle. IĞDIR ığdır.",
    "zh": "你好，我叫苏诺。我喜欢比萨饼，也喜欢下棋：三连棋、围棋（19路）。繁體字也行。𠮷",
}
OTHERS = [
    "Buenos días Miguel. Tu colega piensa que tu alemán es extremadamente malo. But I suppose your english isn't bad.",
    "我 love ЯJAX और 한국 ja-JP",
    "♪ In the jungle, the mighty jungle, the lion barks tonight ♪",
    "[laughter] [laughs] [sighs] [music] [gasps] [clears throat] ... MAN: WOMAN: — …",
    "🙂👍🏽 👨‍👩‍👧‍👦 🇩🇪 ☎️ ⓐ ½ ﬁ",
    "[MASK] [CLS][SEP] x[PAD]y [UNK] [unk] [unused5] [ MASK ]",
    "e\u0301 é n\u0303 ñ \u1100\u1161 가 Å Å",
    "a" * 100,
    "a" * 101,
    "ab " * 40 + "Donaudampfschifffahrtsgesellschaftskapitän",
    "http://example.com/a?b=c&d=%20#e user@host.org 1,234.5e-6 C++ x_y $5 5£ ¥",
    "a\x00b \x01\x02 c\x7fd \x80e\x9f f\u00adg \u200bh\u200di \ufeffj \ufffdk \u202el \U000e0001m",
    "tab\there\nnew\r\nline\x0bvt\x0cff\x1cfs\x1ffs\x85nel\xa0nbsp\u2003em\u2028ls\u3000ideographic",
    "##ing ##s # ## ' '' \" `` ´ ’ ‘",
    "\U0010ffff \ue000 \u0378 \ufdd0",
]


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    if not VOCABULARY.exists():
        pytest.skip(f"no vocabulary at {VOCABULARY}")
    return VOCABULARY.read_text("utf-8").split("\n")[:-1]


@pytest.fixture(scope="session")
def bert(vocabulary):
    return text.build_tokenizer(VOCABULARY, SUNO)


@pytest.fixture(scope="session")
def reference(vocabulary):
    transformers = pytest.importorskip("transformers")
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = transformers.BertTokenizer(vocab=ids, do_lower_case=False)
    assert len(tokenizer) == 119_547
    return tokenizer


def ids(tokenizer, string):
    return tokenizer.encode(string, add_special_tokens=False).ids


WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] hello world ##s ##ing a b c , . ! ' 你 好 é".split()
CONFIG = config.SemanticConfig(
    config.GPTConfig(1, 1, 4, input_vocab_size=200, output_vocab_size=60, block_size=64),
    text_length=8,
    text_offset=100,
    text_pad_token=100 + len(WORDS),
    infer_token=199,
    vocab_size=50,
    pad_token=50,
    max_tokens=16,
)


@pytest.fixture
def small():
    return text.build_tokenizer(WORDS, CONFIG)


# Equal to the reference


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_languages_equal_the_reference(bert, reference, language):
    string = LANGUAGES[language]
    expected = reference.encode(string, add_special_tokens=False)
    assert ids(bert, string) == expected
    assert len(expected) > 15
    assert sum(token == 100 for token in expected) <= len(expected) // 4  # words of the language are known, not [UNK]


@pytest.mark.parametrize("string", OTHERS)
def test_other_texts_equal_the_reference(bert, reference, string):
    assert ids(bert, string) == reference.encode(string, add_special_tokens=False)


def test_code_switched_texts_equal_the_reference(bert, reference):
    rng = random.Random(0)
    words = [word for sentence in (*LANGUAGES.values(), *OTHERS) for word in sentence.split()]
    for _ in range(300):
        string = rng.choice(["", " ", "\t"]).join(rng.choices(words, k=rng.randint(1, 12)))
        assert ids(bert, string) == reference.encode(string, add_special_tokens=False), string


def test_every_character_below_0x3000_equals_the_reference(bert, reference):
    for start in range(0, 0x3000, 64):
        string = "".join(f"a{chr(code)}b {chr(code)} " for code in range(start, start + 64))
        assert ids(bert, string) == reference.encode(string, add_special_tokens=False), hex(start)


@settings(max_examples=300, deadline=None)
@given(string=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_equals_the_reference(bert, reference, string):
    assert ids(bert, string) == reference.encode(string, add_special_tokens=False)


def test_encode_is_sunos_row(bert, reference):
    for string in (*LANGUAGES.values(), *OTHERS, "  two\n\nspaces \t and\u3000more  "):
        collapsed = re.sub(r"\s+", " ", string).strip()
        expected = np.array(reference.encode(collapsed, add_special_tokens=False)) + 10_048
        row = text.encode(bert, SUNO, string)
        assert row.dtype == np.int32 and row.shape == (256,)
        np.testing.assert_array_equal(row, np.pad(expected, (0, 256 - len(expected)), constant_values=129_595))
        assert text.count_tokens(bert, string) == len(expected)


def test_tokenizer_json_is_the_same_tokenizer(bert, tmp_path):
    path = tmp_path / "tokenizer.json"
    bert.save(str(path))
    for loaded in (text.load_tokenizer(path, SUNO), text.load_tokenizer(bert.to_str(), SUNO)):
        for string in (*LANGUAGES.values(), *OTHERS):
            assert ids(loaded, string) == ids(bert, string)


def test_published_style_json_with_truncation_is_not_cut(bert):
    tree = json.loads(bert.to_str())
    tree["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tree["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    loaded = text.load_tokenizer(json.dumps(tree), SUNO)
    assert text.count_tokens(loaded, LANGUAGES["en"]) == text.count_tokens(bert, LANGUAGES["en"]) > 4


# The row


def test_row_of_a_small_model(small):
    row = text.encode(small, CONFIG, "hello worlds, 你好é!")
    words = "hello world ##s , 你 好".split()
    assert row[:6].tolist() == [100 + WORDS.index(word) for word in words]
    with pytest.raises(TextError, match=r"has 10 tokens, 2 more than the limit of 8"):
        text.encode(small, CONFIG, "a b c a b c a b c a")


def test_exactly_the_limit_fits(small):
    row = text.encode(small, CONFIG, "a b c a b c a b")
    assert (row < CONFIG.text_pad_token).all() and row.shape == (8,)


def test_a_shorter_text_is_padded(small):
    assert text.encode(small, CONFIG, "a").tolist() == [100 + WORDS.index("a")] + [CONFIG.text_pad_token] * 7


def test_over_the_limit_names_what_does_not_fit(bert):
    words = " ".join(f"word{n}" for n in range(200))
    n = text.count_tokens(bert, words)
    with pytest.raises(TextError) as error:
        text.encode(bert, SUNO, words)
    message = str(error.value)
    first = re.search(r"starts at 'word(\d+) ", message)
    assert f"has {n} tokens" in message and "256" in message and "split=True" in message and first
    fits = " ".join(f"word{k}" for k in range(int(first[1])))
    assert text.count_tokens(bert, fits) <= 256 < text.count_tokens(bert, f"{fits} word{first[1]}")
    text.encode(bert, SUNO, fits)


def test_other_kinds_of_tokenizer():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded = text.load_tokenizer(tokenizer.to_str())
    assert text.count_tokens(loaded, "ab ba a") == 4


# Errors


@pytest.mark.parametrize("value", [None, 3, b"hello", ["hello"], np.str_])
def test_not_a_text(small, value):
    with pytest.raises(TextError, match="must be a str"):
        text.encode(small, CONFIG, value)
    with pytest.raises(TextError, match="must be a str"):
        text.count_tokens(small, value)


@pytest.mark.parametrize("value", ["", " ", "\n\t \u3000\xa0", "\x1c\x1d\x1e\x1f\x85"])
def test_empty(small, value):
    with pytest.raises(TextError, match="white space"):
        text.encode(small, CONFIG, value)
    assert text.count_tokens(small, value) == 0


@pytest.mark.parametrize("value", ["\x00", "\x01\x02\x7f", "\u200b", "\ufeff", "\ufffd", " \x00 \u200d "])
def test_no_tokens(small, value):
    with pytest.raises(TextError, match="no tokens"):
        text.encode(small, CONFIG, value)
    assert text.count_tokens(small, value) == 0


@pytest.mark.parametrize(
    ("value", "where"), [("\ud800", 0), ("ab\udc00c", 2), ("x \udfff", 2), ("é\ud83d tail", 1), ("\ude00\ud83d", 0)]
)
def test_lone_surrogates(small, value, where):
    with pytest.raises(TextError, match=rf"U\+D[89A-F][0-9A-F]{{2}} at position {where}"):
        text.encode(small, CONFIG, value)


def test_control_characters_are_dropped(small):
    np.testing.assert_array_equal(
        text.encode(small, CONFIG, "he\x00l\x01lo\x7f \u200bworld\ufeff"), text.encode(small, CONFIG, "hello world")
    )


def test_tokenizer_of_another_model(small):
    other = text.build_tokenizer([*WORDS, "pizza"])
    with pytest.raises(TextError, match=r"gives id 19 \('pizza'\): the model knows ids 0 to 18"):
        text.encode(other, CONFIG, "hello pizza")
    text.encode(other, CONFIG, "hello world")
    for config_ in (CONFIG, SUNO):
        with pytest.raises(TokenizerError, match=f"20 tokens: .* vocabulary has {config_.text_vocab_size:,}"):
            text.load_tokenizer(other.to_str(), config_)


def test_a_truncating_tokenizer_is_refused(small):
    small.enable_truncation(2)
    with pytest.raises(TokenizerError, match="truncates"):
        text.encode(small, CONFIG, "a b c")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"no token \[UNK\]"),
        (["a", "b"], r"no token \[UNK\]"),
        (["[UNK]", "a", "a"], "line 3 repeats 'a' of line 2"),
        (["[UNK]", "", "a"], "line 2 is ''"),
        (["[UNK]", 5], "line 2 is 5"),
    ],
)
def test_broken_vocabulary(lines, message):
    with pytest.raises(TokenizerError, match=message):
        text.build_tokenizer(lines)


def test_vocabulary_files(tmp_path):
    path = tmp_path / "vocab.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join([*WORDS, ""]).encode())
        assert ids(text.build_tokenizer(path, CONFIG), "hello worlds") == [5, 6, 7]
    path.write_bytes("\n".join(WORDS).encode())  # no newline at the end
    assert text.build_tokenizer(str(path), CONFIG).get_vocab_size() == len(WORDS)
    path.write_bytes(b"[UNK]\n\xff\xfe\n")
    with pytest.raises(TokenizerError, match="UTF-8"):
        text.build_tokenizer(path)
    with pytest.raises(FileNotFoundError):
        text.build_tokenizer(tmp_path / "none.txt")


@pytest.mark.parametrize(
    "source",
    [
        "{",
        "{}",
        '{"model": 3}',
        '{"model": {"type": "WordPiece"}}',
        '{"model": {"type": "WordPiece", "vocab": 5}}',
        '{"model": {"type": "Nothing", "vocab": {}}}',
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        '{"model": {"vocab": ' + "[" * 100_000,
        '{"model": ' * 3_000 + "1" + "}" * 3_000,
    ],
)
def test_broken_json(source):
    with pytest.raises(TokenizerError):
        text.load_tokenizer(source)


def test_ids_with_gaps(small):
    tree = json.loads(small.to_str())
    tree["model"]["vocab"]["hello"] = 4_000_000_000
    with pytest.raises(TokenizerError, match="without gaps"):
        text.load_tokenizer(json.dumps(tree))


def test_json_files(small, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match="UTF-8"):
        text.load_tokenizer(path)
    path.write_text('["not", "an", "object"]')
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        text.load_tokenizer(path)
    with pytest.raises(FileNotFoundError):
        text.load_tokenizer(tmp_path / "none.json")
    monkeypatch.setattr(text, "MAX_TOKENIZER_BYTES", 1_000)
    path.write_text(small.to_str())
    for source in (path, small.to_str()):
        with pytest.raises(TokenizerError, match="1,000"):
            text.load_tokenizer(source)


@pytest.mark.parametrize(
    ("unit", "n"),
    [
        ("x", 1),
        ("🙂", 1),
        ("\u0301", 1),
        ("a\u200d", 1),
        ("\x00", 0),
        ("hello ", 16_666),
        ("你", 100_000),
        ("'", 100_000),
    ],
)
def test_long_texts_are_quick(bert, unit, n):
    string = unit * (100_000 // len(unit))
    start = time.perf_counter()
    assert text.count_tokens(bert, string) == n if n < 2 else text.count_tokens(bert, string) >= n
    if n == 1:  # one word of more than 100 characters is one [UNK]
        assert text.encode(bert, SUNO, string)[0] == 10_048 + 100
    else:
        with pytest.raises(TextError):
            text.encode(bert, SUNO, string)
    assert time.perf_counter() - start < 2


@settings(max_examples=500, deadline=None)
@given(string=st.text(max_size=80))  # lone surrogates included
def test_any_text_gives_a_row_or_a_text_error(string):
    tokenizer = text.build_tokenizer(WORDS, CONFIG)
    try:
        row = text.encode(tokenizer, CONFIG, string)
    except TextError as error:
        assert len(str(error)) < 500
        return
    assert row.shape == (8,) and row.min() >= 100 and row.max() <= CONFIG.text_pad_token
    assert any(unicodedata.category(character) != "Cc" for character in string)
