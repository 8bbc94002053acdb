"""Texts and what is said → which id of a text every semantic id speaks, found out from the pairs alone.

A text stage must find its place in the text before it can read, and a small one does not find it by itself: it guesses
from the time that has passed. So training may show it, and this is where that knowledge comes from: a hidden Markov
model whose states are the ids of a text, one after the other, with a silence at either end. How long an id lasts and
which semantic ids speak it are found by expectation maximisation (Baum and Welch), beginning with ids of equal length.

numpy only; a pure function of the pairs, so that a run that is gone on with sees what it saw before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Align clips.

    Args:
      texts: of every clip, its (n,) text ids, any integers.
      said: of every clip, its (t,) semantic ids, any integers.

    Returns:
      Of every clip (t,) int32: how many ids of the text have begun by then. 0: none has; k: the id before number k is
      being said; n + 1: the last one is over. They never fall. `UNKNOWN` throughout: t is less than n + 2.
    """
    ids, codes = _numbered(texts), _numbered(said)
    places = [np.full(len(part), UNKNOWN, np.int32) for part in said]
    fit = [i for i in range(len(texts)) if len(said[i]) >= len(texts[i]) + 2]
    if not fit:
        return places
    n_ids, n_codes = (1 + max(int(part.max(initial=0)) for part in some) for some in (ids, codes))
    chosen = fit[:: -(-len(fit) // LEARNT)]
    emission, stay = _equal(chosen, ids, codes, n_ids, n_codes), np.full(n_ids + 1, 0.8)
    for _ in range(ITERATIONS):
        counts, seen, visits = np.full(emission.shape, 0.01), np.zeros(n_ids + 1), np.zeros(n_ids + 1)
        for clips in _batches(chosen, ids, codes, n_ids):
            _count(clips, emission, stay, counts, seen, visits)
        emission = counts / counts.sum(axis=1, keepdims=True)
        stay = 1 - 1 / np.clip(seen / np.maximum(visits, 1), 1.05, 50)
    for clips in _batches(fit, ids, codes, n_ids):
        for row, path in zip(clips.rows, _likeliest(clips, emission, stay), strict=True):
            places[row] = path
    return places


def _numbered(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same with the values that occur numbered 0, 1, ...: vocabularies are large, and mostly not met."""
    ends = np.cumsum([len(part) for part in parts])
    which = np.unique(np.concatenate([*parts, np.zeros(0, np.int64)]), return_inverse=True)[1]
    return np.split(which.reshape(-1), ends[:-1]) if len(parts) else []


def _equal(
    rows: Sequence[int], ids: Sequence[np.ndarray], codes: Sequence[np.ndarray], n_ids: int, n_codes: int
) -> np.ndarray:
    """Emissions (n_ids + 1, n_codes) if all states of a clip last equally long."""
    counts = np.full((n_ids + 1, n_codes), 0.1)
    for i in rows:
        states = np.concatenate([[n_ids], ids[i], [n_ids]])
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
    skips = (place < clips.n_states[:, None] - 2) * SKIPPED * (1 - kept)
    skips = np.where(place < clips.n_states[:, None] - 3, skips, 0.0)
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
