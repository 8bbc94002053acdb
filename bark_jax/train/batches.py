"""Corpora → batches: which row, with which history, in which order. Batch number n is a pure function of n and a seed.

Takes `Corpus`es and gives `Batch`es of numpy arrays; what an example looks like is `examples`' affair, and nothing here
knows networks or devices. A run that stops after step n goes on with batch n: there is no other state to keep.

* Order: every epoch, a permutation of the rows of its own. Rehearsal rows come from a second corpus at a fixed share,
  in an order of their own.
* History: a share of the examples follows another clip of the row's voice. A row that is alone in its voice, or has
  none, is cut in two for the coarse and fine stages, and its end follows its beginning.
* Joined: for the text stage, some rows go on with others of their voice, within the same example.
* Length: `group` batches' worth of consecutive examples are sorted by length and cut into batches, which are then
  shuffled. A batch's length is rounded up to a multiple of `bucket`, so few shapes occur, and few programs compile.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from bark_jax import tokens
from bark_jax.config import BarkConfig
from bark_jax.train import examples
from bark_jax.train.data import Corpus
from bark_jax.train.examples import IGNORE, Batch, Example, Options, Row, shortest

DEFAULT = Options()
PADDING = -1
"""`Batch.rows` of what fills up the last batch of a validation: an example without targets."""


# --- histories --------------------------------------------------------------------------------------------------------


def cut(config: BarkConfig, row: Row, at: int) -> tuple[Row, Row]:
    """A clip's beginning, `at` semantic ids, and the rest, as two clips whose lengths obey `tokens.n_frames`.

    Codes belong to the rest as far as its semantic ids need them. What is before them may be one frame more than the
    beginning needs: its first frame is left out then.
    """
    n, frames = len(row.semantic), row.fine.shape[1]
    second = frames - tokens.n_frames(config.coarse, n - at)
    first = second - tokens.n_frames(config.coarse, at)
    return (
        Row(row.id, None, None, row.voice, row.semantic[:at], row.fine[:, first:second]),
        Row(row.id, row.text, row.text_ids, row.voice, row.semantic[at:], row.fine[:, second:]),
    )


class Source:
    """Examples of a corpus's rows.

    Args:
      histories: numbers of the rows that may serve as history.
      history_share: probability that a row has a history, if there is one for it.
    """

    def __init__(
        self,
        config: BarkConfig,
        stage: str,
        corpus: Corpus,
        histories: np.ndarray,
        history_share: float,
        options: Options,
    ):
        self.config, self.stage, self.corpus, self.options = config, stage, corpus, options
        self.history_share = history_share
        usable = np.unique(histories)
        usable = usable[(corpus.lengths[usable] >= shortest(config)) & (corpus.voices[usable] >= 0)]
        self._pool = usable[np.argsort(corpus.voices[usable], kind="stable")]  # by voice, and within one by number
        self._ends = np.searchsorted(corpus.voices[self._pool], np.arange(-1, len(corpus.names)), side="right")

    def example(self, i: int, rng: np.random.Generator) -> Example:
        """An example of row `i`."""
        row, history = self.corpus[i], None
        while self.options.joined and rng.random() < self.options.joined:
            other = self.other(i, rng)
            longer = None if other is None else examples.join(self.config, row, self.corpus[other])
            if longer is None:
                break
            row = longer
        if rng.random() < self.history_share:
            other = self.other(i, rng)
            if other is not None:
                history = self.corpus[other]
            elif self.stage != "text":
                least = shortest(self.config)
                if len(row.semantic) >= 2 * least:
                    history, row = cut(self.config, row, int(rng.integers(least, len(row.semantic) - least + 1)))
        return examples.example(self.stage, self.config, row, history, rng, self.options)

    def other(self, i: int, rng: np.random.Generator) -> int | None:
        """Another row of the voice of row `i`, each as likely as any; None if there is none."""
        voice = int(self.corpus.voices[i])
        if voice < 0:
            return None
        start, end = int(self._ends[voice]), int(self._ends[voice + 1])
        own = start + int(np.searchsorted(self._pool[start:end], i))
        itself = own < end and self._pool[own] == i
        if end - start - itself <= 0:
            return None
        k = start + int(rng.integers(end - start - itself))
        return int(self._pool[k + 1 if itself and k >= own else k])


# --- training ---------------------------------------------------------------------------------------------------------


class Batches:
    """Endless batches of a stage: ``batches[step]``, or `iterate`, which prepares them ahead.

    Args:
      indices: numbers of the rows to train on, such as ``corpus.split("train")``. They are each other's histories.
      batch: rows of a batch; every batch is full.
      seed: 0 and more; decides on everything.
      history_share: 0 to 1, see `Source`.
      rehearsal: another corpus of the same stage, and the numbers of the rows to take from it. In `Batch.rows` they
        count from ``len(corpus)``.
      rehearsal_share: 0 to less than 1, their share. It holds to one row in any run of consecutive examples.
      bucket: lengths are multiples of it, or the longest that the stage has.
      group: how many batches' examples are sorted by length together. More: less padding, and batches whose rows are
        more alike.
      shuffle: False takes the rows in their order, again and again.

    Raises:
      ValueError: one of them is out of range, or there are no rows.
    """

    def __init__(
        self,
        config: BarkConfig,
        stage: str,
        corpus: Corpus,
        indices: np.ndarray,
        *,
        batch: int,
        seed: int,
        history_share: float = 0.5,
        rehearsal: tuple[Corpus, np.ndarray] | None = None,
        rehearsal_share: float = 0.0,
        bucket: int = 128,
        group: int = 8,
        shuffle: bool = True,
        options: Options = DEFAULT,
    ):
        for name, value, least in (("batch", batch, 1), ("bucket", bucket, 1), ("group", group, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be {least} or more")
        _check_share("history_share", history_share)
        if not 0 <= rehearsal_share < 1:
            raise ValueError(f"rehearsal_share is {rehearsal_share}: it must be 0 or more, and less than 1")
        if rehearsal is None and rehearsal_share:
            raise ValueError(f"rehearsal_share is {rehearsal_share}, and there are no rehearsal rows: it must be 0")
        self._config, self._stage, self._batch, self._bucket = config, stage, batch, bucket
        self._parts = [(corpus, indices)]
        if rehearsal is not None and rehearsal_share:
            self._parts.append(rehearsal)
        self._sources = [Source(config, stage, rows, chosen, history_share, options) for rows, chosen in self._parts]
        # Independent seeds for every decision: with grain's own, that of the order plus the epoch, the second epoch of
        # one seed would be the first of the next.
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4, np.uint64)]
        orders = [
            grain.MapDataset.source(_Order(chosen, seeds[k], shuffle)).map(functools.partial(_tag, k))
            for k, (_, chosen) in enumerate(self._parts)
        ]
        rows = orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, [1 - rehearsal_share, rehearsal_share])
        made = rows.random_map(self._example, seed=seeds[2])
        groups = made.batch(batch * group, drop_remainder=True, batch_fn=list)
        self._groups = groups.random_map(self._cut, seed=seeds[3])
        self._group = group
        self._remembered = functools.lru_cache(maxsize=2)(self._made)  # steps come one after the other

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, 0 or more. Arrays are shared between calls: not to be written to."""
        if step < 0:
            raise IndexError(f"step is {step}: it must be 0 or more")
        group, k = divmod(step, self._group)
        return self._remembered(group)[k]

    def iterate(self, start: int = 0) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from step `start` on, for ever; the next two groups are prepared in a thread."""
        group, k = divmod(start, self._group)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        step = start
        for batches in self._groups.slice(slice(group, None)).to_iter_dataset(ahead):
            for batch in batches[k:]:
                yield step, batch
                step += 1
            k = 0

    def _made(self, group: int) -> list[Batch]:
        made = self._groups[group]
        assert made is not None  # nothing is filtered out
        return made

    def describe(self, row: int) -> str:
        """Where a row of `Batch.rows` came from."""
        if row < 0:
            return "padding"
        corpus = self._parts[0][0]
        if row < len(corpus):
            return corpus.describe(row)
        return self._parts[1][0].describe(row - len(corpus))

    def _example(self, item: tuple[int, int], rng: np.random.Generator) -> tuple[int, Example]:
        part, i = item
        number = i if part == 0 else len(self._parts[0][0]) + i
        return number, self._sources[part].example(i, rng)

    def _cut(self, group: Sequence[tuple[int, Example]], rng: np.random.Generator) -> list[Batch]:
        ordered = sorted(group, key=lambda item: examples.length(item[1]))
        pieces = [ordered[k : k + self._batch] for k in range(0, len(ordered), self._batch)]
        return [_collate(self._stage, self._config, pieces[k], self._bucket) for k in rng.permutation(len(pieces))]


class _Order:
    """Element `index` is a row; every ``len(rows)`` elements, an epoch, name each row once. A data source for grain.

    grain's own shuffle of a handful of elements takes 2 to 6 ms for each, and corpora of a handful of rows are what one
    tries first.
    """

    def __init__(self, rows: np.ndarray, seed: int, shuffle: bool):
        if len(rows) == 0:
            raise ValueError("There are no rows to make batches of")
        self._rows = np.asarray(rows)
        self._seed, self._shuffle = seed, shuffle
        self._epoch = functools.lru_cache(maxsize=2)(self._permuted)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(int(index), len(self._rows))
        return int(self._epoch(epoch)[place]) if self._shuffle else int(self._rows[place])

    def _permuted(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(self._rows)


def _tag(part: int, i: int) -> tuple[int, int]:
    return part, i


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: it must be 0 to 1")


def _collate(stage: str, config: BarkConfig, items: Sequence[tuple[int, Example]], bucket: int) -> Batch:
    needed = max(examples.length(example) for _, example in items)
    length = min(math.ceil(needed / bucket) * bucket, examples.longest(stage, config))
    return examples.collate(stage, config, [e for _, e in items], [i for i, _ in items], length)


# --- validation -------------------------------------------------------------------------------------------------------


class Validation:
    """Each row once, in order, the same at every evaluation: ``len()`` batches, by number or one after the other.

    What is random in training (window, codebook, history) is drawn here from the row's id alone, so that a row's
    example is the same in every run, and stays what it is when rows of other voices are added. The last batch is filled
    up with examples without targets.

    Args:
      histories: numbers of the rows that may serve as history; None: all of the corpus.
    """

    def __init__(
        self,
        config: BarkConfig,
        stage: str,
        corpus: Corpus,
        indices: np.ndarray,
        *,
        batch: int,
        history_share: float = 0.5,
        histories: np.ndarray | None = None,
        bucket: int = 128,
        options: Options = DEFAULT,
    ):
        if batch < 1 or bucket < 1:
            raise ValueError(f"batch is {batch} and bucket {bucket}: both must be 1 or more")
        _check_share("history_share", history_share)
        self._config, self._stage, self._corpus, self._indices = config, stage, corpus, np.asarray(indices)
        self._batch, self._bucket = batch, bucket
        histories = np.arange(len(corpus)) if histories is None else histories
        self._source = Source(config, stage, corpus, histories, history_share, options)

    def __len__(self) -> int:
        return math.ceil(len(self._indices) / self._batch)

    def __getitem__(self, k: int) -> Batch:
        if not 0 <= k < len(self):
            raise IndexError(f"batch {k} of {len(self)}")
        rows = self._indices[k * self._batch : (k + 1) * self._batch]
        items = [(int(i), self._source.example(int(i), self._rng(int(i)))) for i in rows]
        blank = items[0][1]._replace(targets=np.full_like(items[0][1].targets, IGNORE))
        items += [(PADDING, blank)] * (self._batch - len(items))
        return _collate(self._stage, self._config, items, self._bucket)

    def __iter__(self) -> Iterator[Batch]:
        return (self[k] for k in range(len(self)))

    def describe(self, row: int) -> str:
        """Where a row of `Batch.rows` came from."""
        return "padding" if row < 0 else self._corpus.describe(row)

    def _rng(self, i: int) -> np.random.Generator:
        name = hashlib.sha256(self._corpus.ids[i].encode()).digest()
        return np.random.default_rng(np.frombuffer(name, "<u4").tolist())
