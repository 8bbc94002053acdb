"""Where the phonemes are: what a teacher was given to read, and its speech → the phoneme of every 20 ms.

    phonemes, spectra ─ hidden Markov model over k-means of the spectra (`bark_jax.train.alignment`) ─▶ a first guess
    guess ─▶ network learns it ─▶ likeliest way through the clip's phonemes ─▶ guess, and again

The classical way of hybrid recognisers (Bourlard and Morgan 1994); only here the phonemes are known exactly, because
teachers read phonemes. Pauses may be between any two words. Networks and clips are `units`'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PAUSE = "_"
UNHEARD = "ˌː"
"""Signs of misaki that are no sounds of their own: secondary stress, and length, which its vowel implies."""
STRESS = "ˈ"
STAY, GO = np.log(0.7), np.log(0.3)
"""To go on with a sound, and to begin the next: sounds last some 4 frames."""
PRIOR = 0.6
"""How much of a sound's frequency is taken off what the network says of it: with none of it pauses and frequent sounds
grow at every turn. Chosen, not tuned."""


def sounds(phonemes: str) -> list[tuple[str, int]]:
    """What is heard of a teacher's phonemes: each sound, and what may be before it.

    Returns:
      Of each a name, stressed vowels with `STRESS` before it, and 0 within a word, 1 at a word's beginning, 2 after a
      sign of punctuation.
    """
    found, stressed, before = [], "", 0
    for sign in phonemes:
        if sign == STRESS:
            stressed = STRESS
        elif sign in UNHEARD:
            continue
        elif sign.isalpha():
            found.append((stressed + sign, before))
            stressed, before = "", 0
        else:
            before = max(before, 1 if sign == " " else 2)
    return found


def states(said: Sequence[tuple[str, int]], names: Sequence[str], *, least: int = 1) -> np.ndarray:
    """Numbers of the sounds of a clip, with pauses (number 0) where there may be one: from `least` on, and at the ends.

    Raises:
      KeyError: a sound that is not among the names.
    """
    number = {name: i for i, name in enumerate(names)}
    found = [0]
    for i, (name, before) in enumerate(said):
        found += [0, number[name]] if i and before >= least else [number[name]]
    return np.array([*found, 0])


def likeliest(scores: np.ndarray, lengths: np.ndarray, ways: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The likeliest way of each clip through its states (Viterbi); pauses may be left out.

    Args:
      scores: (B, T, sounds) log likelihoods.
      lengths: (B,) frames of each clip.
      ways: B times what `states` gives.

    Returns:
      B times (length,) int: the sound of each frame.

    Raises:
      ValueError: a clip is shorter than its sounds.
    """
    rows, n = len(ways), max(map(len, ways))
    padded = np.zeros((rows, n), np.int64)
    for row, way in enumerate(ways):
        padded[row, : len(way)] = way
        if lengths[row] < np.count_nonzero(way):
            raise ValueError(f"a clip has {lengths[row]} frames and {np.count_nonzero(way)} sounds: each takes a frame")
    skipped = np.zeros((rows, n), bool)  # the state before may be left out
    skipped[:, 2:] = padded[:, 1:-1] == 0
    never = np.float32(-1e9)
    best = np.full((rows, n), never, np.float32)
    row = np.arange(rows)[:, None]
    best[:, :2] = scores[row, 0, padded[:, :2]]
    came = np.zeros((scores.shape[1], rows, n), np.int8)
    last = np.zeros(rows, np.int64)
    n_states = np.array([len(way) for way in ways])
    for t in range(scores.shape[1]):
        if t:
            one, two = (np.pad(best, ((0, 0), (k, 0)), constant_values=never)[:, :-k] for k in (1, 2))
            ways_here = np.stack([best + STAY, one + GO, np.where(skipped, two + GO, never)])
            came[t] = ways_here.argmax(axis=0)
            best = ways_here.max(axis=0) + scores[row, t, padded]
        for i in np.flatnonzero(lengths == t + 1):
            last[i] = n_states[i] - 1 - int(best[i, n_states[i] - 2] > best[i, n_states[i] - 1])
    found = []
    for i in range(rows):
        path, state = np.zeros(lengths[i], np.int64), int(last[i])
        for t in range(lengths[i] - 1, -1, -1):
            path[t] = padded[i, state]
            state -= int(came[t, i, state])
        found.append(path)
    return found
