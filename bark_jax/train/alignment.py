"""Texts and what is said → which id of a text every semantic id speaks, found out from the pairs alone.

A text stage must find its place in the text before it can read, and a small one does not find it by itself: it guesses
from the time that has passed. So training may show it, and this is where that knowledge comes from: a hidden Markov
model whose states are the ids of a text, one after the other, with a silence at either end. How long an id lasts and
which semantic ids speak it are found by expectation maximisation (Baum and Welch), beginning with ids of equal length.

numpy only; a pure function of the pairs, so that a run that is gone on with sees what it saw before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

UNKNOWN = -1
"""Place of the semantic ids of a clip that cannot be aligned: it has fewer of them than ids of its text."""

ITERATIONS, LEARNT = 6, 4_096
"""Rounds of expectation maximisation, and the most clips that they see (evenly taken): more changed little."""
SKIPPED = 0.1
"""Probability that an id is not heard at all: signs, mostly. Chosen, not tuned."""
_TOGETHER = 256  # clips of like length computed at once


class _Clips(NamedTuple):
    """Some clips: states (B, N), the silence's number being the last; semantic ids (B, T); how many there are."""

    rows: np.ndarray
    states: np.ndarray
    said: np.ndarray
    n_states: np.ndarray
    n_said: np.ndarray


def align(texts: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Find out from clips how their ids are said, and where each of them is: `Sounds.learn`, then `Sounds.places`."""
    return Sounds.learn(texts, said).places(texts, said) if texts else []


@dataclass(frozen=True, eq=False)
class Sounds:
    """How the ids of texts are said. 8 bytes for every pair of a text id and a semantic id that occur, twice as many
    while it is learnt.

    Attributes:
      ids, codes: the text ids and the semantic ids that occurred, ascending.
      emission: (ids + 1, codes), how often each id is said so; the last row is silence's.
      stay: (ids + 1,), how likely each goes on.
    """

    ids: np.ndarray
    codes: np.ndarray
    emission: np.ndarray
    stay: np.ndarray

    @classmethod
    def learn(cls, texts: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> Sounds:
        """Learn from clips.

        Args:
          texts: of every clip, its (n,) text ids, any integers.
          said: of every clip, its (t,) semantic ids, any integers.
        """
        # Numbered by those that occur: vocabularies are large, and mostly not met.
        known, heard = (np.unique(np.concatenate([np.asarray(part) for part in some])) for some in (texts, said))
        blank = cls(known, heard, np.zeros((len(known) + 1, len(heard))), np.full(len(known) + 1, 0.8))
        numbered = blank._numbered(texts, said)
        fit = _aligned(*numbered)
        chosen = fit[:: -(-len(fit) // LEARNT)] if fit else []
        sounds = replace(blank, emission=_equal(chosen, *numbered, *blank.emission.shape))
        for _ in range(ITERATIONS if fit else 0):
            counts, n = np.full(blank.emission.shape, 0.01), len(known) + 1
            seen, visits = np.zeros(n), np.zeros(n)
            for clips in _batches(chosen, *numbered, len(known)):
                _count(clips, sounds.emission, sounds.stay, counts, seen, visits)
            stay = 1 - 1 / np.clip(seen / np.maximum(visits, 1), 1.05, 50)
            sounds = replace(blank, emission=counts / counts.sum(axis=1, keepdims=True), stay=stay)
        return sounds

    def places(self, texts: Sequence[np.ndarray], said: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Align clips.

        Returns:
          Of every clip (t,) int32: how many ids of the text have begun by then. 0: none has; k: the id before number k
          is being said; n + 1: the last one is over. They never fall. `UNKNOWN` throughout: t is less than n + 2.

        Raises:
          ValueError: an id that was not among those learnt from.
        """
        numbered = self._numbered(texts, said)
        places = [np.full(len(part), UNKNOWN, np.int32) for part in said]
        for clips in _batches(_aligned(*numbered), *numbered, len(self.ids)):
            for row, path in zip(clips.rows, _likeliest(clips, self.emission, self.stay), strict=True):
                places[row] = path
        return places

    def likelihoods(self, text: np.ndarray, said: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How likely a clip's semantic ids are where they are: (t,), natural logarithms."""
        [ids], [codes] = self._numbered([text], [said])
        return np.log(self.emission[np.concatenate([[len(self.ids)], ids, [len(self.ids)]])[places], codes])

    def _numbered(
        self, texts: Sequence[np.ndarray], said: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return _among(self.ids, texts, "text"), _among(self.codes, said, "semantic")


def _among(known: np.ndarray, parts: Sequence[np.ndarray], kind: str) -> list[np.ndarray]:
    """Each value's number in `known`."""
    values = np.concatenate([np.asarray(part, np.int64) for part in parts])
    numbers = np.minimum(np.searchsorted(known, values), len(known) - 1)
    if (known[numbers] != values).any():
        raise ValueError(
            f"{kind} id {values[known[numbers] != values][0]} did not occur where these sounds were learnt"
        )
    return np.split(numbers, np.cumsum([len(part) for part in parts])[:-1])


def _aligned(ids: Sequence[np.ndarray], codes: Sequence[np.ndarray]) -> list[int]:
    """The clips that can be aligned: every id may take a place of its own, and so may both silences."""
    return [i for i in range(len(ids)) if len(codes[i]) >= len(ids[i]) + 2]


def _equal(
    rows: Sequence[int], ids: Sequence[np.ndarray], codes: Sequence[np.ndarray], n_states: int, n_codes: int
) -> np.ndarray:
    """Emissions (n_states, n_codes) if all states of a clip last equally long."""
    counts = np.full((n_states, n_codes), 0.1)
    for i in rows:
        states = np.concatenate([[n_states - 1], ids[i], [n_states - 1]])
        at = np.arange(len(codes[i])) * len(states) // len(codes[i])
        np.add.at(counts, (states[at], codes[i]), 1)
    return counts / counts.sum(axis=1, keepdims=True)


def _batches(
    rows: Sequence[int], ids: Sequence[np.ndarray], codes: Sequence[np.ndarray], silence: int
) -> Iterator[_Clips]:
    ordered = sorted(rows, key=lambda i: len(codes[i]))
    for k in range(0, len(ordered), _TOGETHER):
        some = ordered[k : k + _TOGETHER]
        n_states, n_said = np.array([len(ids[i]) + 2 for i in some]), np.array([len(codes[i]) for i in some])
        states = np.full((len(some), n_states.max()), silence)
        said = np.zeros((len(some), n_said.max()), np.int64)
        for j, i in enumerate(some):
            states[j, 1 : 1 + len(ids[i])] = ids[i]
            said[j, : len(codes[i])] = codes[i]
        yield _Clips(np.array(some), states, said, n_states, n_said)


def _moves(clips: _Clips, stay: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (B, N) to stay in a state, to go to the next, and to the one after it: no silence is skipped."""
    kept = stay[clips.states]
    place = np.arange(clips.states.shape[1])
    skips = np.where(place < clips.n_states[:, None] - 3, SKIPPED * (1 - kept), 0.0)
    return kept, 1 - kept - skips, skips


def _shifted(x: np.ndarray, by: int, fill: float = 0.0) -> np.ndarray:
    """x (B, N) moved to the right, or to the left."""
    out = np.full_like(x, fill)
    if by > 0:
        out[:, by:] = x[:, :-by]
    else:
        out[:, :by] = x[:, -by:]
    return out


def _emitted(clips: _Clips, emission: np.ndarray) -> np.ndarray:
    """(T, B, N): how likely every state says what is said; 0 for states that a clip has not."""
    real = np.arange(clips.states.shape[1]) < clips.n_states[:, None]
    out = emission[clips.states[None], clips.said.T[:, :, None]]
    return np.where(real, out, 0.0)


def _count(
    clips: _Clips,
    emission: np.ndarray,
    stay: np.ndarray,
    counts: np.ndarray,
    seen: np.ndarray,
    visits: np.ndarray,
) -> None:
    """Add the expected numbers: of a state's semantic ids, of all of them, and of its visits.

    Both passes are scaled step by step, so that nothing vanishes however long a clip is.
    """
    emitted, (kept, goes, skips) = _emitted(clips, emission), _moves(clips, stay)
    n_steps, n_rows, n = emitted.shape
    row = np.arange(n_rows)
    forward = np.zeros_like(emitted)
    now = np.zeros((n_rows, n))
    now[:, :2] = 0.5 * emitted[0, :, :2]
    for k in range(n_steps):
        if k:
            now = (now * kept + _shifted(now * goes, 1) + _shifted(now * skips, 2)) * emitted[k]
        now /= np.maximum(now.sum(axis=1, keepdims=True), 1e-300)
        forward[k] = now
    back = np.zeros((n_rows, n))
    for k in range(n_steps - 1, -1, -1):
        if k < n_steps - 1:
            ahead = back * emitted[k + 1]
            back = kept * ahead + goes * _shifted(ahead, -1) + skips * _shifted(ahead, -2)
        ends = clips.n_said == k + 1
        back[ends] = 0.0
        for before in (1, 2):
            back[row[ends], clips.n_states[ends] - before] = 1.0
        back /= np.maximum(back.sum(axis=1, keepdims=True), 1e-300)
        share = forward[k] * back
        share *= (k < clips.n_said)[:, None] / np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
        forward[k] = share
    at = clips.states[None] * counts.shape[1] + clips.said.T[:, :, None]
    counts += np.bincount(at.reshape(-1), forward.reshape(-1), counts.size).reshape(counts.shape)
    per_state = forward.sum(axis=0)
    seen += np.bincount(clips.states.reshape(-1), per_state.reshape(-1), len(seen))
    real = np.arange(n) < clips.n_states[:, None]
    visits += np.bincount(clips.states.reshape(-1), (real * np.minimum(per_state, 1)).reshape(-1), len(visits))


def _likeliest(clips: _Clips, emission: np.ndarray, stay: np.ndarray) -> Iterator[np.ndarray]:
    """The likeliest path of every clip (Viterbi), as numbers of states."""
    with np.errstate(divide="ignore"):
        emitted = np.log(_emitted(clips, emission)).astype(np.float32)
        kept, goes, skips = (np.log(x).astype(np.float32) for x in _moves(clips, stay))
    n_steps, n_rows, n = emitted.shape
    best = np.full((n_rows, n), -np.inf, np.float32)
    best[:, :2] = emitted[0, :, :2]
    from_where = np.zeros((n_steps, n_rows, n), np.int8)
    at_end = np.zeros((n_rows, 2), np.float32)
    for k in range(n_steps):
        if k:
            ways = np.stack([best + kept, _shifted(best + goes, 1, -np.inf), _shifted(best + skips, 2, -np.inf)])
            from_where[k] = ways.argmax(axis=0)
            best = ways.max(axis=0) + emitted[k]
        ends = np.flatnonzero(clips.n_said == k + 1)
        for before in (1, 2):
            at_end[ends, before - 1] = best[ends, clips.n_states[ends] - before]
    for j in range(n_rows):
        state = clips.n_states[j] - 1 - int(at_end[j, 1] > at_end[j, 0])
        path = np.zeros(clips.n_said[j], np.int32)
        for k in range(clips.n_said[j] - 1, -1, -1):
            path[k] = state
            state -= from_where[k, j, state]
        yield path
