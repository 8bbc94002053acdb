"""What callers give → checked requests. Everything is checked here, item by item, before anything is computed.

Takes texts, voices, seeds, settings and adapters' names, each one or a list; gives `Request`s, and for what is spoken
as a whole `Script`s. Knows the tokenizer, where voices are found, and the model's limits; computes nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bark_jax import settings, splitting, text
from bark_jax.adapters import AdapterError
from bark_jax.config import BarkConfig
from bark_jax.library import Library
from bark_jax.settings import Sampling, SamplingError
from bark_jax.speech import BarkWarning
from bark_jax.splitting import Split, SplitError
from bark_jax.voice import Voice, VoiceError

VoiceLike = None | str | Path | Mapping[str, Any] | Voice
"""What a caller may mean by a voice: none, a name, a path, Suno's dictionary, a `Voice`."""

FITS = 0.845
"""Share of the longest call that a text may be predicted to last and still be one: 13.0 of Bark's 15.4 s."""

LEAST_S = 5.0
"""A text that is predicted to last less is one call of any model: to cut it would tear words from their sentence."""


@dataclass(frozen=True)
class Request:
    """One utterance to make, checked."""

    text: str
    ids: np.ndarray
    """(text_length,) int32."""
    voice: Voice | None
    seed: int
    sampling: Sampling
    adapter: str | None = None


@dataclass(frozen=True)
class Script:
    """One text to speak, checked."""

    text: str
    plan: splitting.Plan
    requests: list[Request]
    """One for each part; all have the seed of the whole."""
    split: Split


class Intake:
    """Checks what one model is asked for.

    Args:
      voices: where voices are looked up.
      adapters: names that may be asked for.
      draws: whether a seed that is missing may be drawn: not where other processes would draw others.
    """

    def __init__(
        self, config: BarkConfig, tokenizer: Tokenizer, voices: Library, adapters: Sequence[str], *, draws: bool = True
    ):
        self.config, self._tokenizer, self._voices, self._adapters = config, tokenizer, voices, tuple(adapters)
        self._draws = draws

    def scripts(
        self, said: Any, voice: Any, seed: Any, settings: Any, adapter: Any, split: bool | Split
    ) -> list[Script]:
        """Every text as it will be spoken, with everything checked before anything is computed."""
        if not isinstance(split, bool | Split):
            raise SplitError(f"split is {split!r}: it must be True, False or a bark_jax.Split")
        how = split if isinstance(split, Split) else Split()
        ruler = self._ruler(how)
        look_up = _once(self._voices.get)
        scripts = []
        for line, cast, *rest, where in self._items(said, voice, seed, settings, adapter):
            with _item(where):
                if isinstance(cast, Mapping) and not cast:
                    raise VoiceError("voice is empty: it must name a voice for each speaker, or be None for no voice")
                speakers = cast if is_cast(cast) else {None: cast}
                names = [name for name in speakers if name is not None]
                for name in names:
                    if not isinstance(name, str) or not name.strip():
                        raise VoiceError(f"a cast maps names to voices, and has {name!r}: a name is a str")
                if not split and names:
                    raise VoiceError(
                        f"voice is a cast of {', '.join(names)}, and split is False: one call has one voice"
                    )
                language = _language(list(speakers.values()))
                whole = splitting.Plan((splitting.Part(line),), whole=True)
                plan = splitting.plan(line, ruler, how, cast=names, language=language) if split else whole
                known = {name: look_up(v) for name, v in speakers.items()}
                # One seed for all parts, drawn here if none is given.
                first = self._request(plan.parts[0].text, known[plan.parts[0].speaker], *rest)
                requests = [first]
                for part in plan.parts[1:]:
                    one = self._request(part.text, known[part.speaker], first.seed, first.sampling, first.adapter)
                    requests.append(one)
            self._warn_of_unknown(line, [part.text for part in plan.parts])
            for name in splitting.strangers(line, names) if names else []:
                warnings.warn(
                    f"{name + ':'!r} begins a line and is not of the cast ({', '.join(names)}): it is read as text",
                    BarkWarning,
                    stacklevel=3,
                )
            scripts.append(Script(line, plan, requests, how))
        return scripts

    def _ruler(self, split: Split) -> splitting.Ruler:
        """What fits one call of this model."""
        config = self.config.semantic
        longest = config.max_tokens / config.rate_hz
        usual = max(LEAST_S, FITS * longest)
        wanted = usual if split.max_duration_s is None else min(split.max_duration_s, max(LEAST_S, longest))
        return splitting.Ruler(self._tokenizer, config.text_length, wanted)

    def count_tokens(self, line: str) -> int:
        """Text ids of a line, padding left out."""
        return text.count_tokens(self._tokenizer, line)

    def requests(
        self, said: Any, voice: Any, seed: Any, settings: Any, adapter: Any, *, ids: bool = True
    ) -> list[Request]:
        """A request for each input of a stage, checked item by item before anything is computed."""
        look_up = _once(self._voices.get)
        requests = []
        for line, v, *rest, where in self._items(said, voice, seed, settings, adapter):
            with _item(where):
                requests.append(self._request(line, look_up(v), *rest, ids=ids))
        for request in requests if ids else []:
            self._warn_of_unknown(request.text, [request.text])
        return requests

    def _items(self, said: Any, voice: Any, seed: Any, settings: Any, adapter: Any) -> list[tuple[Any, ...]]:
        """(text, voice, seed, sampling, adapter, which item it is if there are several) of each input."""
        many = is_list(said)
        texts = list(said) if many else [said]
        given = {"voice": voice, "seed": seed, "sampling": settings, "adapter": adapter}
        columns = [_broadcast(value, len(texts), many, name) for name, value in given.items()]
        return list(zip(texts, *columns, range(len(texts)) if many else [None], strict=True))

    def _request(
        self, line: str, voice: Voice | None, seed: Any, how: Any, adapter: Any, *, ids: bool = True
    ) -> Request:
        if not isinstance(how, Sampling):
            raise SamplingError(f"sampling is {how!r}: it must be a bark_jax.Sampling")
        least, most = self.config.coarse.window, self.config.coarse.max_history
        if how.max_coarse_history is not None and not least <= how.max_coarse_history <= most:
            raise SamplingError(
                f"max_coarse_history is {how.max_coarse_history}: it must be {least} to {most}, or None"
            )
        if adapter is not None and not (isinstance(adapter, str) and adapter in self._adapters):
            there = f"choose None, {', '.join(self._adapters)}" if self._adapters else "`load` was given none"
            raise AdapterError(f"adapter is {str(adapter)[:100]!r}: {there}")
        config = self.config.semantic
        encoded = text.encode(self._tokenizer, config, line) if ids else np.zeros(config.text_length, np.int32)
        if seed is None and not self._draws:
            raise SamplingError("seed is None: every process of a mesh would draw another one, so give a number")
        drawn = settings.new_seed() if seed is None else settings.check_seed(seed)
        return Request(line, encoded, voice, drawn, how, adapter)

    def _warn_of_unknown(self, line: str, parts: Sequence[str]) -> None:
        if unknown := list(dict.fromkeys(word for part in parts for word in text.unknown(self._tokenizer, part))):
            shown = ", ".join(map(repr, unknown[:10])) + (" …" if len(unknown) > 10 else "")
            warnings.warn(
                f"The model does not know {shown} of {line[:60]!r}: it has to guess, or passes over it",
                BarkWarning,
                stacklevel=4,
            )


# --- values -----------------------------------------------------------------------------------------------------------


@contextmanager
def _item(number: int | None) -> Iterator[None]:
    """Let errors name the item of a list that they are about."""
    try:
        yield
    except ValueError as error:
        if number is None or isinstance(error, UnicodeError):  # that one takes other arguments
            raise
        raise type(error)(f"item {number}: {error}") from error


def _once(get: Callable[[Any], Voice | None]) -> Callable[[Any], Voice | None]:
    """`get`, asked once for each object: a list may name one voice a thousand times."""
    known: dict[int, Voice | None] = {}

    def got(value: Any) -> Voice | None:
        if id(value) not in known:
            known[id(value)] = get(value)
        return known[id(value)]

    return got


def is_cast(voice: Any) -> bool:
    """Whether it is {speaker: voice}, and not Suno's dictionary of one voice."""
    return isinstance(voice, Mapping) and bool(voice) and not any(str(key).endswith("_prompt") for key in voice)


def _language(voices: list[Any]) -> str | None:
    """The language that the names of voices tell, such as v2/de_speaker_3; None: they do not, or not the same."""
    found = {name[1] for v in voices if isinstance(v, str) and (name := re.fullmatch(r"(?:v2/)?(..)_speaker_\d", v))}
    return found.pop() if len(found) == 1 and found <= set(splitting.LANGUAGES) else None


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def as_list(value: Any) -> list[Any]:
    return list(value) if is_list(value) else [value]


def places(value: Any, rows: list[Any]) -> list[str]:
    return [f"[{i}]" for i in range(len(rows))] if is_list(value) else [""]


def blank(value: Any, rows: list[Any]) -> Any:
    """As many empty texts as there are inputs: stages after the first have none."""
    return [""] * len(rows) if is_list(value) else ""


def _broadcast(value: Any, n: int, many: bool, name: str) -> list[Any]:
    if not is_list(value):
        return [value] * n
    if not many:
        raise ValueError(f"{name} is a list of {len(value)}, but there is one input: lists go together")
    if len(value) != n:
        raise ValueError(f"{name} has {len(value)} items for {n} inputs: give one for all, or one for each")
    return list(value)


def integers(value: Any, name: str, shape: tuple[int | None, ...], low: int, high: int) -> np.ndarray:
    """`value` as int32, or a ValueError; `shape` gives the rank and, where not None, the least size of an axis."""
    array = _array(value, name)
    if array.ndim != len(shape) or not np.issubdtype(array.dtype, np.integer):
        axes = "(n,)" if len(shape) == 1 else "(codebooks, frames)"
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}: it must be integers {axes}")
    if any(least is not None and size < least for size, least in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name} has shape {array.shape}: it is empty, and must have at least 1")
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"{name} has values {array.min()} to {array.max()}: they must be {low} to {high}")
    return array.astype(np.int32)


def samples(value: Any, name: str) -> np.ndarray:
    """`value` as mono float audio, or a ValueError."""
    array = _array(value, name)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}: it must be mono float samples (n,), -1 to 1")
    if not len(array):
        raise ValueError(f"{name} is empty: it must hold at least 1 sample")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN, infinity or values beyond float32: all samples must be finite")
    return array


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever an object's __array__ raises
        raise ValueError(f"{name} cannot be made an array: {error}") from None
