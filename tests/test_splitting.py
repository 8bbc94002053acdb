"""Long texts: no character is lost, every part fits a call, sentences of 13 languages, pauses, scripts."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import suno_like
from bark_jax import text as texts
from bark_jax.splitting import (
    LANGUAGES,
    Part,
    Plan,
    Ruler,
    Split,
    SplitError,
    language_of,
    packed,
    plan,
    predicted_duration,
    sentences,
    strangers,
    turns,
)
from bark_jax.text import TextError

TOKENIZER = texts.load_tokenizer(suno_like.tokenizer_json())
BARK = Ruler(TOKENIZER, 256, 13.0)
SHORT = Ruler(TOKENIZER, 24, 2.0)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
PROSE = st.lists(
    st.sampled_from(
        ["Hello. ", "why, ", "你好。", "Dr. ", "\n", "\n\n", "... ", "♪ ", "word ", "a" * 70, "\u0301", "\u200b"]
    )
).map("".join)


class TestLossless:
    @given(TEXT | PROSE, st.sampled_from([None, *LANGUAGES]))
    @example("你好。\n\nHi.", None)
    def test_sentences_are_the_text(self, text, language):
        assert "".join(sentences(text, language)) == text

    @given(TEXT | PROSE)
    def test_pieces_are_the_text_and_fit(self, text):
        for ruler in (BARK, SHORT):
            pieces = packed(text, ruler)
            assert "".join(piece for piece, _ in pieces) == (text if pieces else "")
            assert bool(pieces) == (texts.count_tokens(TOKENIZER, text) > 0)
            for piece, _ in pieces:
                assert texts.count_tokens(TOKENIZER, piece) > 0
                # White space is no sound, and characters without tokens are no tokens, yet both belong somewhere.
                assert ruler.fits(piece) or ruler.fits(piece.strip()) or len(piece.strip()) < 4

    @pytest.mark.parametrize("text", ["J\u2009.", "plan A\u2028. b", "A\u3000.B", "x\u2009\u2009. A\u2029."])
    def test_white_space_that_sentencex_cannot_count(self, text):
        for language in LANGUAGES:
            assert "".join(sentences(text, language)) == text

    def test_a_long_text_with_white_space_between_sentences(self):
        # sentencex drops some of it where it cuts a text of this size for its own sake.
        text = "".join(f"你{i}.b?a,你\n\nb.!,b\n ?aaaab." for i in range(2000))
        assert "".join(sentences(text, "en")) == text

    @pytest.mark.parametrize(
        "unit",
        [
            "word ",
            "a",
            "你好天气",
            "- ",
            "One two, three. ",
            "x\u0301",
            "\n",
            "a!\n\n",
            "a! ",
            ".\n\n",
            "“ ",
            "「あ。」と",
        ],
        ids=repr,
    )
    def test_a_megabyte_takes_linear_time(self, unit):
        def seconds(n: int) -> float:
            text = unit * (n // len(unit))
            start = time.process_time()
            pieces = packed(text, BARK)
            assert "".join(piece for piece, _ in pieces) == (text if pieces else "")
            return time.process_time() - start

        small, large = seconds(100_000), seconds(1_000_000)
        assert large < 25 * small + 0.5
        assert large < 20  # 2 s alone on a machine; tests do not run alone

    def test_letters_without_tokens_go_with_what_they_follow(self):
        text = "Hello there.\n\n\x7f\u200b\n\n" + "And so on, and so on, as ever. " * 20
        pieces = packed(text, SHORT)
        assert "".join(piece for piece, _ in pieces) == text
        assert not any(SHORT.silent(piece) for piece, _ in pieces)


class TestSentences:
    @pytest.mark.parametrize(
        ("language", "expected"),
        [
            ("en", ["Dr. Smith came on Jan. 5th. ", 'He said: "Hi! Are you well?" ', "He left... ", "[laughs] OK?"]),
            ("de", ["Am 3. Mai kam Herr Dr. Müller z. B. nach Hause. ", "Er war müde."]),
            ("es", ["El Sr. García llegó. ", "¿Cómo está? ", "¡Bien!"]),
            ("fr", ["M. Dupont est arrivé. ", "« Bonjour ! » dit-il. ", "Et vous ?"]),
            ("hi", ["डॉ. शर्मा आए। ", "वे अच्छे हैं। ", "क्या आप ठीक हैं?"]),
            ("it", ["Il sig. Rossi è qui. ", "Va bene?"]),
            ("ja", ["彼は「こんにちは。」と言った。", "今日は天気がいい。", "本当？"]),
            ("ko", ['그는 "안녕하세요." 라고 말했다. ', "오늘은 날씨가 좋다."]),
            ("pl", ["Dr. Kowalski mieszka w Warszawie. ", "To np. dobre miasto. ", "Czy to prawda?"]),
            ("pt", ["O Sr. Silva chegou. ", "Tudo bem?"]),
            ("ru", ["т. е. это правда. ", "А. С. Пушкин родился в 1799 г. в Москве. ", "Да?"]),
            ("tr", ["Sayın Prof. Dr. Yılmaz geldi. ", "Nasılsınız?"]),
            ("zh", ["你好。", "今天天气很好！", "你呢？"]),
        ],
    )  # fmt: skip
    def test_each_language(self, language, expected):
        assert sentences("".join(expected), language) == expected
        own = language_of("".join(expected))
        assert own == (language if language in ("hi", "ja", "ko", "ru", "zh") else "en")

    def test_all_languages_are_there(self):
        assert len(LANGUAGES) == 13

    def test_durations(self):
        assert 2.0 < predicted_duration("The quick brown fox jumps over the lazy dog.") < 4.0
        assert 1.0 < predicted_duration("今天天气很好！") < 3.0
        assert predicted_duration("") == 0


class TestPacking:
    LONG = "It was late. " + "The train had left an hour ago, and nobody was there to ask about the next one. " * 8

    def test_a_text_that_fits_is_left_alone(self):
        text = "  Hello there,\nyou.  How are you? "
        assert plan(text, BARK, Split()) == Plan((Part(text),), whole=True)

    def test_the_first_sentence_is_alone_and_parts_are_even(self):
        made = plan(self.LONG, BARK, Split())
        assert made.parts[0].text == "It was late. " and not made.whole
        lengths = [predicted_duration(part.text) for part in made.parts[1:]]
        assert len(lengths) >= 4 and max(lengths) <= 13 and min(lengths) > 0.5 * max(lengths)
        assert all(part.pause_s == 0.3 for part in made.parts[1:])

    def test_paragraphs_stay_apart(self):
        made = plan(self.LONG + "\n\nNew. " + self.LONG, BARK, Split(pause_s=0.2))
        [new] = [part for part in made.parts if part.text.startswith("New.")]
        assert new.pause_s == pytest.approx(0.4)

    def test_an_overlong_sentence_is_cut_at_commas_then_at_spaces(self):
        made = plan("He came, " + ", ".join(["and then he said that it was late"] * 12) + ".", BARK, Split())
        assert len(made.parts) > 1 and all(part.text.rstrip().endswith((",", ".")) for part in made.parts)
        assert made.parts[1].pause_s == pytest.approx(0.15)
        made = plan("and then he said that it was late " * 12, BARK, Split())
        assert len(made.parts) > 1 and all(part.text.endswith(" ") for part in made.parts[:-1])
        assert made.parts[1].pause_s == 0

    def test_marks_stay_with_their_letters(self):
        made = packed("x\u0301" * 1000, SHORT)
        assert len(made) > 1 and all(piece.startswith("x") for piece, _ in made)

    def test_punctuation_alone_is_not_worth_a_call(self):
        made = plan(self.LONG + " — ! ... ", BARK, Split())
        assert not [part for part in made.parts if not any(c.isalnum() for c in part.text)]

    def test_a_limit_of_ones_own(self):
        assert len(plan(self.LONG, BARK, Split(max_duration_s=5)).parts) == len(plan(self.LONG, BARK, Split()).parts)
        short = Ruler(TOKENIZER, 256, 5.0)
        assert len(plan(self.LONG, short, Split()).parts) > len(plan(self.LONG, BARK, Split()).parts)


class TestPauses:
    def test_tags(self):
        made = plan("[pause 1s] Hi. [PAUSE] There [pause:300ms] you [pause 0.5 s][pause 0.25s]", BARK, Split())
        assert [(part.text.strip(), part.pause_s) for part in made.parts] == [
            ("Hi.", 1.0),
            ("There", 0.5),
            ("you", 0.3),
        ]
        assert made.pause_s == 0.75

    def test_a_pause_of_nothing(self):
        made = plan("One thing. [pause 0] Two things.", BARK, Split())
        assert [part.pause_s for part in made.parts] == [0, 0]

    def test_pauses_in_a_row(self):
        with pytest.raises(TextError, match="pauses of 120 s in a row: they may last 60 s"):
            plan("a [pause 60s] [pause 60s] b", BARK, Split())

    @pytest.mark.parametrize("tag", ["[pause x]", "[pause 61s]", "[pause -1s]", "[pause 1 hour]"])
    def test_a_pause_that_is_none(self, tag):
        with pytest.raises(TextError, match=r"a pause is \[pause\]"):
            plan(f"Hi {tag} you", BARK, Split())

    @pytest.mark.parametrize("text", ["[pause]", " [pause 1s] \n"])
    def test_silence_alone(self, text):
        with pytest.raises(TextError, match="something to say"):
            plan(text, BARK, Split())

    def test_other_tags_are_text(self):
        assert plan("Hi [laughs] [paused] you", BARK, Split()).whole


class TestScripts:
    SCRIPT = "\nANNA: Hi there.\n  BOB  : Hello: you!\nHow are you?\nANNA: Fine"

    def test_turns(self):
        assert [(who, line.strip()) for who, line in turns(self.SCRIPT, ("ANNA", "BOB"))] == [
            ("ANNA", "Hi there."), ("BOB", "Hello: you!\nHow are you?"), ("ANNA", "Fine"),
        ]  # fmt: skip

    def test_every_turn_is_a_part(self):
        made = plan(self.SCRIPT, BARK, Split(), cast=("ANNA", "BOB"))
        assert [part.speaker for part in made.parts] == ["ANNA", "BOB", "ANNA"]
        assert [part.pause_s for part in made.parts] == [0, 0.3, 0.3]

    def test_the_longer_name_counts(self):
        assert [who for who, _ in turns("A B: x\nA: y", ("A", "A B"))] == ["A B", "A"]

    @pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028", "\u2029"], ids=repr)
    def test_other_ways_to_write_a_script(self, end):
        text = f"\ufeffАнна: привет{end}小明：你好{end} Jose\u0301 : hola"
        said = turns(text, ("Анна", "小明", "José"))
        assert [(who, what.strip()) for who, what in said] == [("Анна", "привет"), ("小明", "你好"), ("José", "hola")]

    def test_a_line_without_speaker(self):
        with pytest.raises(TextError, match=r"'Hello' has no speaker: .* one of ANNA:, BOB:"):
            plan("Hello\nANNA: Hi", BARK, Split(), cast=("ANNA", "BOB"))

    def test_strangers(self):
        assert strangers("ANNA: a\nCARL: b\nNote: c\nDR. WHO: d", ("ANNA",)) == ["CARL", "DR. WHO"]
        assert strangers("Anna: a\nBne: b\nBEN： c", ("ANNA", "Ben")) == ["Anna", "Bne", "BEN"]


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"voice": "second"}, "voice is 'second': it must be one of fixed, first, previous, or None"),
            ({"max_duration_s": 0.4}, r"max_duration_s is 0\.4: it must be 0\.5 or more, or None"),
            ({"max_duration_s": float("inf")}, "max_duration_s is inf"),
            ({"max_duration_s": float("nan")}, "max_duration_s is nan"),
            ({"max_duration_s": True}, "max_duration_s is True"),
            ({"retries": -1}, "retries is -1: it must be an integer of 0 to 100"),
            ({"retries": 2.0}, r"retries is 2\.0"),
            ({"retries": float("nan")}, "retries is nan"),
            ({"pause_s": 61}, "pause_s is 61: it must be 0 to 60"),
            ({"trim": 1}, "trim is 1: it must be True or False"),
            ({"language": "xx"}, "language is 'xx': it must be one of en, de"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(SplitError, match=message):
            Split(**settings)

    @pytest.mark.parametrize("text", ["\ud800", 7, None, b"hello"])
    def test_not_a_text(self, text):
        with pytest.raises(TextError):
            plan(text, BARK, Split())

    def test_a_surrogate(self):
        with pytest.raises(TextError, match="surrogate"):
            sentences("a\udfff")
