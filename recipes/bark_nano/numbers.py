"""Numbers in digits → words, as rules of a tokenizer's normalizer: patterns and replacements.

American, without "and". Years are said in pairs of digits; more than six digits, those after a point, and numbers that
begin with a nought one by one; 7:05 is "seven oh five", and $3.50 "three dollars fifty".
"""

from __future__ import annotations

import re

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SIGNS = {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "°": "degrees"}
MONEY = {r"\$": "dollar", "£": "pound"}
ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    **{"twelve": "twelfth", **{ten: f"{ten[:-1]}ieth" for ten in TENS}},
}


def cardinal(n: int) -> str:
    """0 to 99 in words."""
    return ONES[n] if n < 20 else TENS[n // 10 - 2] + (f" {ONES[n % 10]}" if n % 10 else "")


def ordinal(n: int) -> str:
    """1st to 99th in words."""
    *tens, last = cardinal(n).split()
    return " ".join([*tens, ORDINALS.get(last, f"{last}th")])


def rules() -> list[tuple[str, str]]:
    """Patterns (Oniguruma's) and replacements, one after the other; what they are given is in small letters."""
    seven = "|".join(rf"(?<=\d{{{i}}})(?=\d{{{7 - i}}})" for i in range(1, 7))
    year = r"(?<=^1[1-9]|\D1[1-9])"
    money = {word: "|".join(rf"{sign}[\d,]{{{n}}}\d" for n in range(7)) for sign, word in MONEY.items()}
    return [
        *((re.escape(sign), f" {word} ") for sign, word in SIGNS.items()),
        *((rf"(?<={sign}1)(?!\d|[,.]\d)", f" {word}") for sign, word in MONEY.items()),
        *((rf"(?<={amount})(?!\d|[,.]\d| {word})", f" {word}s") for word, amount in money.items()),
        *((rf"(?<={amount})\.(?=\d\d(?!\d))", f" {word}s ") for word, amount in money.items()),
        *((rf"{sign}(?=\d)", "") for sign in MONEY),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),  # 12,000
        *((rf"(?<!\d){n}(st|nd|rd|th)\b", ordinal(n)) for n in range(99, 0, -1)),
        (r"(?<=\d)\.(?=\d)", " point "),
        *((rf"(?<=point{' .' * n})(?=\d)", " ") for n in range(1, 7)),
        (r"(?<=\d):00(?!\d)", " o'clock"),
        (r"(?<=\d):0(?=\d(?!\d))", " oh "),
        (r"(?<=\d):(?=\d)", " "),
        (seven, " "),
        *[(r"(?<!\d)0(?=\d)", "0 ")] * 5,
        (rf"{year}00(?!\d)", " hundred"),
        (rf"{year}0(?=[1-9](?!\d))", " oh "),
        (rf"{year}(?=[1-9]\d(?!\d))", " "),
        (r"(?<=^20|\D20)(?=[1-9]\d(?!\d))", " "),
        (r"(?<=\d)000(?!\d)", " thousand"),
        (r"(?<=\d)(?=\d{3}(?!\d))", " thousand "),
        (r"(?<=thousand )0{1,2}", ""),
        (r"(?<=\d)00(?!\d)", " hundred"),
        (r"(?<=\d)(?=\d\d(?!\d))", " hundred "),
        (r"(?<=hundred )0", ""),
        *((rf"(?<!\d){n}(?!\d)", f" {cardinal(n)} ") for n in range(99, -1, -1)),
    ]
