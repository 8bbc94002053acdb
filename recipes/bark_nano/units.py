"""Step 2, semantic units: ``python -m recipes.bark_nano.units align|cluster|train``.

    align    which phoneme every 20 ms of the speech is, of what teachers read: WORK/units/sounds/ID.npy (`sounds`)
    cluster  the spectra of each phoneme ─ k-means ─▶ WORK/units/clusters.npz, WORK/units/labels/ID.npy
    train    `bark_jax.units`, log mel → units: WORK/units/units.safetensors

Each can be stopped and started again. The corpus itself gets its units from the network (`rows`), as every voice prompt
will; phonemes only teach it, as in CosyVoice's supervised tokens (Du et al. 2024, arXiv 2407.05407). A unit is a
phoneme, stressed or not, and one of several ways in which it sounds, whoever speaks. Units of whisper's features,
which were here before, lost a fifth of the words (`benchmarks/NOTES.md`, "Units that say the words").
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bark_jax.files import replacing
from recipes.bark_nano import corpus, run, sounds

N_UNITS = 500
N_PAUSES = 8
"""Units of what is no sound."""
RARE = 200
"""Frames of a sound for which more than one unit is looked for."""
CODES = 200
"""Of spectra, for the first guess where sounds are."""
ROUNDS = (300, 350, 500)
"""Steps of the network that finds sounds, before each time that it is asked."""
TOGETHER = 32
"""Clips that are aligned at once."""


def sources(work: Path) -> list[tuple[str, Path, str]]:
    """(id, file, split) of all speech that has units: understood clips, and recordings of people."""
    heldout = {clip.id: clip for clip in corpus.read_plan(work) if clip.split == "heldout"}
    clips = {**corpus.good(work), **heldout}
    found = [(id_, corpus.audio_path(work, id_), clip.split) for id_, clip in clips.items()]
    for split in ("train", "test"):
        files = sorted(corpus.recorded(work, split).glob("*.flac"))
        found += [(f"recordings/{split}/{file.stem}", file, {"test": "heldout"}.get(split, split)) for file in files]
    return [item for item in found if item[1].is_file()]


def read_aloud(work: Path, *, bulk: int, seed: int = 0) -> list[corpus.Clip]:
    """The clips that units are learnt from, and all that is held out: of the bulk voice `bulk` of those to train on.

    Of a smaller number, the first of them.
    """
    plan = {clip.id: clip for clip in corpus.read_plan(work)}
    there = [(plan[id_], split) for id_, _, split in sources(work) if id_ in plan]
    learnt = [clip for clip, split in there if split == "train"]
    many = [clip for clip in learnt if clip.voice != corpus.BULK]
    one = sorted(
        (clip for clip in learnt if clip.voice == corpus.BULK),
        key=lambda clip: hashlib.sha256(f"{seed} {clip.id}".encode()).digest(),
    )
    return many + one[:bulk] + [clip for clip, split in there if split == "heldout"]


class Spectra:
    """What the network hears of clips, (T, n_mels) of 20 ms each."""

    def __init__(self, config: Any):
        import jax
        from flax import nnx

        from bark_jax.units import LogMelUnits

        self.config = config
        network = LogMelUnits(config, rngs=nnx.Rngs(0))
        self._spectrum = jax.jit(network.spectrum)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Of samples (N,) int16, T = N // hop; float16."""
        n, hop = len(audio) // self.config.hop, self.config.hop
        size = 100 * hop  # so that few lengths are compiled
        padded = np.zeros((1, -(-n * hop // size) * size), np.float32)
        padded[0, : n * hop] = audio[: n * hop].astype(np.float32) / 32768
        found = np.asarray(self._spectrum(padded))[0, : 2 * n]
        return found.reshape(n, 2, -1).mean(axis=1).astype(np.float16)


def of_own_voice(clips: Sequence[corpus.Clip], heard: Sequence[np.ndarray], loud: Sequence[np.ndarray]) -> None:
    """Take off every voice's mean spectrum, in place.

    Args:
      heard: (T, n_mels) of each clip.
      loud: (T,) bool, frames that the mean is of.
    """
    for voice in {clip.voice for clip in clips}:
        own = [i for i, clip in enumerate(clips) if clip.voice == voice]
        mean = np.concatenate([heard[i][loud[i]] for i in own]).astype(np.float32).mean(axis=0)
        for i in own:
            heard[i][:] = heard[i] - mean


def with_neighbours(x: np.ndarray) -> np.ndarray:
    """(T, C) → (T, 3 C) float32: what was before, is, and comes after."""
    x = np.pad(x.astype(np.float32), ((1, 1), (0, 0)), mode="edge")
    return np.concatenate([x[:-2], x[1:-1], x[2:]], axis=1)


def sound_path(work: Path, id_: str) -> Path:
    return work / "units" / "sounds" / f"{id_}.npy"


def label_path(work: Path, id_: str) -> Path:
    return work / "units" / "labels" / f"{id_}.npy"


def names_path(work: Path) -> Path:
    return work / "units" / "sounds" / "names.json"


def clusters_path(work: Path) -> Path:
    return work / "units" / "clusters.npz"


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def _heard(work: Path, clips: Sequence[corpus.Clip], config: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Samples and spectra of clips."""
    from recipes.bark_nano.train_codec import samples

    spectra = Spectra(config)
    audio = [samples(corpus.audio_path(work, clip.id), config.sample_rate) for clip in clips]
    for clip, samples_ in zip(clips, audio, strict=True):
        if len(samples_) < config.hop:
            raise ValueError(
                f"{corpus.audio_path(work, clip.id)} has {len(samples_)} samples: a unit takes {config.hop}"
            )
    return audio, [spectra(samples_) for samples_ in audio]


def align(
    work: Path,
    *,
    bulk: int,
    rounds: Sequence[int] = ROUNDS,
    rate: float = 2e-3,
    seed: int = 0,
    read: Callable[..., str] | None = None,
) -> None:
    """Find the sounds of `read_aloud`'s clips; what is held out teaches nothing of it.

    Args:
      read: text, british=bool → phonemes; default: the teachers' reader.

    Raises:
      ValueError: there are no clips, or one is too short for what it says.
    """
    from sklearn.cluster import MiniBatchKMeans

    from bark_jax.train import alignment
    from bark_jax.units import UnitsConfig
    from recipes.bark_nano.teachers import Reader

    clips = read_aloud(work, bulk=bulk)
    learnt = [i for i, clip in enumerate(clips) if clip.split == "train"]
    if not learnt:
        raise ValueError(f"{work} has nothing to learn units from: run `corpus speak` and `check` first")
    read = read or Reader()
    said = [sounds.sounds(read(clip.text, british=clip.british)) for clip in clips]
    names = [sounds.PAUSE, *sorted({name for one in said for name, _ in one})]
    config = UnitsConfig(n_units=len(names))
    audio, heard = _heard(work, clips, config)
    if short := [clip.id for clip, one, x in zip(clips, said, heard, strict=True) if len(x) < len(one)]:
        raise ValueError(f"{short[0]} has fewer frames than sounds, as {len(short)} have: take them out of the plan")
    ways = [sounds.states(one, names) for one in said]
    print(f"{len(clips):,} clips, {sum(map(len, heard)) / 180_000:.2f} h, {len(names)} sounds", flush=True)

    loud = [x.mean(axis=1) > np.quantile(x.mean(axis=1), 0.2) for x in heard]
    of_own_voice(clips, heard, loud)
    means = MiniBatchKMeans(CODES, batch_size=8192, n_init=2, max_iter=50, random_state=seed)
    means.fit(np.concatenate([heard[i][::2] for i in learnt]).astype(np.float32))
    codes = [means.predict(x.astype(np.float32)) for x in heard]
    plain = [sounds.states(one, names, least=2)[1:-1] for one in said]  # the ends are the model's own
    full = [np.concatenate([[0], one, [0]]) for one in plain]
    places = alignment.align(plain, codes)
    labels = [
        np.full(len(x), -1) if place[0] == alignment.UNKNOWN else way[place]
        for x, place, way in zip(heard, places, full, strict=True)
    ]
    params: Any = None
    for number, steps in enumerate(rounds, 1):
        known = [(audio[i], labels[i]) for i in learnt]
        params = teach(config, known, params, steps=steps, rate=rate, seed=seed + number, disturb=False)
        found = _realigned(config, params, audio, ways, labels)
        same = np.mean(np.concatenate([a == b for a, b in zip(found, labels, strict=True)]))
        print(f"round {number}: {same:.1%} of the frames as before", flush=True)
        labels = found
    made_from = {"names": hashlib.sha256(json.dumps(names).encode()).hexdigest()}
    corpus.of_one_kind(work / "units" / "sounds", made_from, "other sounds", files="*.npy")
    for clip, label in zip(clips, labels, strict=True):
        _write(sound_path(work, clip.id), label.astype(np.uint8))
    with replacing(names_path(work)) as part:
        part.write_text(json.dumps(names, ensure_ascii=False), "utf-8")
    _write_network(work / "units" / "sounds" / "network.safetensors", config, params)


def _realigned(
    config: Any, params: Any, audio: Sequence[np.ndarray], ways: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> list[np.ndarray]:
    import jax
    from flax import nnx

    from bark_jax import weights
    from bark_jax.units import LogMelUnits

    network = weights.fill(nnx.eval_shape(lambda: LogMelUnits(config, rngs=nnx.Rngs(0))), dict(params))
    said = np.concatenate(labels)
    counts = np.bincount(said[said >= 0], minlength=config.n_units) + 1.0
    prior = np.log(counts / counts.sum())

    @jax.jit
    def scores(audio: jax.Array, frames: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(network(audio, frames), axis=-1)

    found: list[Any] = [None] * len(audio)
    ordered = sorted(range(len(audio)), key=lambda i: len(audio[i]))
    for start in range(0, len(ordered), TOGETHER):
        some = ordered[start : start + TOGETHER]
        lengths = np.array([len(audio[i]) // config.hop for i in some])
        size = -(-int(lengths.max()) // 50) * 50
        rows = np.zeros((TOGETHER, size * config.hop), np.float32)
        for row, i in enumerate(some):
            n = lengths[row] * config.hop
            rows[row, :n] = audio[i][:n].astype(np.float32) / 32768
        given = scores(rows, np.pad(lengths, (0, TOGETHER - len(some))))
        paths = sounds.likeliest(
            np.asarray(given)[: len(some)] - sounds.PRIOR * prior, lengths, [ways[i] for i in some]
        )
        for i, path in zip(some, paths, strict=True):
            found[i] = path
    return found


def cluster(work: Path, *, bulk: int, seed: int = 0) -> None:
    """Find the units, and the unit of every frame that is aligned."""
    from sklearn.cluster import KMeans

    from bark_jax.units import UnitsConfig

    if not names_path(work).is_file():
        raise FileNotFoundError(f"there is no {names_path(work)}: run `units align` first")
    names = json.loads(names_path(work).read_text("utf-8"))
    clips = [clip for clip in read_aloud(work, bulk=bulk) if sound_path(work, clip.id).is_file()]
    known = [np.load(sound_path(work, clip.id)) for clip in clips]
    learnt = [i for i, clip in enumerate(clips) if clip.split == "train"]
    _, heard = _heard(work, clips, UnitsConfig())
    of_own_voice(clips, heard, [sound != 0 for sound in known])
    said = np.concatenate([known[i] for i in learnt])
    wide = np.concatenate([with_neighbours(heard[i]).astype(np.float16) for i in learnt])

    chance = np.random.default_rng(seed)
    of_sound = [np.flatnonzero(said == k) for k in range(len(names))]
    some = [wide[chance.permutation(at)[:10_000]].astype(np.float32) for at in of_sound]
    spread = [
        len(at) ** 0.5 * x.var(axis=0).sum() ** 0.5 if len(at) > RARE else 0.0
        for at, x in zip(of_sound, some, strict=True)
    ]
    n = shares(spread, N_UNITS, first=N_PAUSES)
    centres = [
        KMeans(k, n_init=1, random_state=seed).fit(x).cluster_centers_ if k > 1 else x.mean(axis=0, keepdims=True)
        for k, x in zip(n, some, strict=True)
    ]
    first = np.concatenate([[0], np.cumsum(n)])
    with replacing(clusters_path(work)) as part, part.open("wb") as file:
        np.savez(file, names=np.array(names), n=n, centres=np.concatenate(centres).astype(np.float16))
    made_from = {"clusters": hashlib.sha256(clusters_path(work).read_bytes()).hexdigest()}
    corpus.of_one_kind(work / "units" / "labels", made_from, "other clusters", files="*.npy")
    counts = np.zeros(N_UNITS, np.int64)
    for i, clip in enumerate(clips):
        x, label = with_neighbours(heard[i]), np.zeros(len(heard[i]), np.uint16)
        for k in np.unique(known[i]):
            at = known[i] == k
            distance = np.sum(centres[k] ** 2, axis=1) - 2 * x[at] @ centres[k].T
            label[at] = first[k] + np.argmin(distance, axis=1)
        _write(label_path(work, clip.id), label)
        counts += np.bincount(label, minlength=N_UNITS)
    print(f"{counts.sum():,} frames; the least frequent unit has {counts.min()}, the most frequent {counts.max()}")


def sound_of_units(work: Path) -> np.ndarray:
    """(U,) int: the number of the sound that each unit is a kind of."""
    with np.load(clusters_path(work)) as file:
        return np.repeat(np.arange(len(file["n"])), file["n"])


def shares(spread: Sequence[float], total: int, *, first: int) -> np.ndarray:
    """How many of `total` units each sound gets: the first of them `first`, the others by their spread, at least 1."""
    rest = np.array(spread[1:])
    left = total - first
    n = np.maximum(1, np.floor(rest / rest.sum() * left)).astype(int)
    while n.sum() != left:
        if n.sum() < left:
            n[np.argmax(rest / (n + 1))] += 1
        else:
            n[np.argmin(np.where(n > 1, rest / n, np.inf))] -= 1
    return np.array([first, *n])


# --- the network ------------------------------------------------------------------------------------------------------


class Crop(NamedTuple):
    """B rows of T units, at other levels than their clips, with some noise."""

    audio: np.ndarray
    """(B, hop · T) at the codec's rate."""
    units: np.ndarray
    """(B, T) int32, -1 beyond the end of a clip."""


def disturbed(x: Any, key: Any) -> Any:
    """Spectra (B, N, M) as other voices, rooms and microphones might give them: bands up to 12 % higher or lower (as
    in VTLP, Jaitly and Hinton 2013), another balance of bands, and holes (SpecAugment, arXiv 1904.08779).
    """
    import jax
    import jax.numpy as jnp

    rows, length, bands = x.shape
    keys = jax.random.split(key, 6)
    band, time_ = jnp.arange(bands), jnp.arange(length)
    at = jnp.clip(band * jnp.exp(jax.random.uniform(keys[0], (rows, 1), minval=-0.12, maxval=0.12)), 0, bands - 1)
    low = jnp.minimum(jnp.floor(at).astype(jnp.int32), bands - 2)
    part = (at - low)[:, None]
    left, right = (jnp.take_along_axis(x, (low + i)[:, None], axis=2) for i in (0, 1))
    x = left * (1 - part) + right * part
    size = 0.2 * jax.random.normal(keys[1], (rows, 4, 1))  # 1 is a factor of e³, see `LogMelUnits.spectrum`
    phase = jax.random.uniform(keys[2], (rows, 4, 1), maxval=2 * jnp.pi)
    x = x + jnp.sum(size * jnp.cos(jnp.pi * jnp.arange(1, 5)[:, None] * band / bands + phase), axis=1)[:, None]
    middle = jnp.mean(x, axis=(1, 2), keepdims=True)
    for i, (where, most) in enumerate(((time_, 20), (time_, 20), (band, 12))):
        begin, span = (
            jax.random.randint(k, (rows, 1), 0, n)
            for k, n in zip(jax.random.split(keys[3 + i]), (len(where), most), strict=True)
        )
        hole = (where >= begin) & (where < begin + span)
        x = jnp.where(hole[:, :, None] if where is time_ else hole[:, None], middle, x)
    return x


def teach(
    config: Any,
    known: Sequence[tuple[np.ndarray, np.ndarray]],
    params: Any = None,
    *,
    steps: int,
    rate: float,
    seed: int,
    disturb: bool,
    batch: int = 16,
    seconds: float = 4.0,
    minutes: float = 1e9,
    folder: Path | None = None,
) -> Any:
    """Teach a network of `bark_jax.units` the labels of clips.

    Args:
      config: `UnitsConfig`.
      known: audio (samples,) int16 and labels (T,) of each clip, -1 where none is known.
      params: to begin with; default: new ones.
      folder: of checkpoints, to go on where it was.

    Returns:
      Parameters, averaged over the last steps.
    """
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from flax import nnx

    from bark_jax import weights
    from bark_jax.units import LogMelUnits
    from recipes.bark_nano.train_codec import muon_and_adam

    module = nnx.eval_shape(lambda: LogMelUnits(config, rngs=nnx.Rngs(seed)))
    if params is None:
        params = weights.names(LogMelUnits(config, rngs=nnx.Rngs(seed)))
    average: Any = params
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, min(100, steps // 10)), steps, 0.02 * rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon_and_adam(schedule, schedule, 3))

    @jax.jit
    def step(params: Any, average: Any, state: Any, crop: Crop, number: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            network = weights.fill(module, dict(params))
            spectrum = network.spectrum(crop.audio)
            if disturb:
                spectrum = disturbed(spectrum, jax.random.fold_in(jax.random.key(seed), number))
            logits = network.head(network.hidden(spectrum))
            known = crop.units >= 0
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(crop.units, 0))
            right = jnp.sum((jnp.argmax(logits, axis=-1) == crop.units) & known) / jnp.sum(known)
            return jnp.sum(jnp.where(known, nll, 0)) / jnp.sum(known), right

        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        params: Any = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, b: 0.98 * a + 0.02 * b, average, params)
        return params, average, state, value, right

    state = optimizer.init(params)
    manager, number = None, 0
    if folder is not None:
        manager = ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1))
        number = manager.latest_step() or 0
        if number:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, average, state))
            params, average, state = manager.restore(number, args=ocp.args.StandardRestore(abstract))
    began = time.monotonic()
    while number < steps and time.monotonic() - began < 60 * minutes:
        crop = crops(known, np.random.default_rng([seed, number]), batch, seconds, config)
        params, average, state, value, right = step(params, average, state, crop, number)
        number += 1
        if number % 50 == 0 or number == steps:
            if not np.isfinite(float(value)):
                raise ValueError(f"the loss at step {number} is {float(value)}: begin anew with a lower --rate")
            print(f"{number} loss {float(value):.3f}, right {float(right):.1%}", flush=True)
        if manager is not None and number % 500 == 0:
            manager.save(number, args=ocp.args.StandardSave((params, average, state)))
    if number == 0:
        raise ValueError(f"no step was made in {minutes:g} minutes: nothing is written")
    if manager is not None:
        if number != manager.latest_step():
            manager.save(number, args=ocp.args.StandardSave((params, average, state)))
        manager.wait_until_finished()
    return average


def _write_network(path: Path, config: Any, params: Any) -> None:
    from bark_jax import weights
    from bark_jax.units import save

    save(path, config, {name: np.asarray(x).astype(weights.DTYPES["bfloat16"]) for name, x in params.items()})


def train(
    work: Path, *, bulk: int, steps: int, batch: int, seconds: float, rate: float, minutes: float, seed: int = 0
) -> None:
    """Teach the network the units, beginning with the one that found the sounds; goes on where it was."""
    import jax.numpy as jnp
    from flax import nnx

    from bark_jax import weights
    from bark_jax.units import LogMelUnits, UnitsConfig, load
    from recipes.bark_nano.train_codec import samples

    clips = [clip for clip in read_aloud(work, bulk=bulk) if clip.split == "train"]
    clips = [clip for clip in clips if label_path(work, clip.id).is_file()]
    if not clips:
        raise ValueError(f"{work} has no labelled clips to train on: run `units align` and `cluster` first")
    config = UnitsConfig(n_units=N_UNITS)
    params: Any = dict(weights.names(LogMelUnits(config, rngs=nnx.Rngs(seed))))
    before = weights.names(load(work / "units" / "sounds" / "network.safetensors"))
    params |= {name: jnp.asarray(x) for name, x in before.items() if not name.startswith("head.")}
    known = [
        (samples(corpus.audio_path(work, clip.id), config.sample_rate), np.load(label_path(work, clip.id)))
        for clip in clips
    ]
    print(f"{len(known):,} clips", flush=True)
    average = teach(
        config,
        known,
        params,
        steps=steps,
        rate=rate,
        seed=seed,
        disturb=True,
        batch=batch,
        seconds=seconds,
        minutes=minutes,
        folder=work / "units" / "checkpoints",
    )
    _write_network(work / "units" / "units.safetensors", config, average)


def crops(
    known: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, batch: int, seconds: float, config: Any
) -> Crop:
    """Crops of clips.

    Args:
      known: audio (samples,) int16 and units (T,) of each clip.
    """
    frames = int(seconds * config.rate_hz)
    audio = np.zeros((batch, frames * config.hop), np.float32)
    units = np.full((batch, frames), -1, np.int32)
    for row in range(batch):
        clip, labels = known[int(rng.integers(len(known)))]
        start = int(rng.integers(max(1, len(labels) - frames + 1)))
        part = labels[start : start + frames]
        samples = clip[start * config.hop : (start + len(part)) * config.hop].astype(np.float32) / 32768
        audio[row, : len(samples)] = samples * 10 ** rng.uniform(-0.7, 0.2)
        audio[row] += 10 ** rng.uniform(-5, -2.3) * rng.standard_normal(audio.shape[1]).astype(np.float32)
        units[row, : len(part)] = part
    return Crop(audio, units)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.units", description="Make semantic units.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--work", type=Path, default=corpus.WORK, help=f"folder of everything that is made ({corpus.WORK})"
    )
    common.add_argument("--bulk", type=int, default=2000, help="clips of the bulk voice to learn from (2000)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("align", parents=[common], help="find the sounds")
    commands.add_parser("cluster", parents=[common], help="find the units")
    training = commands.add_parser("train", parents=[common], help="teach the network")
    training.add_argument("--steps", type=int, default=3000)
    training.add_argument("--batch", type=int, default=16)
    training.add_argument("--seconds", type=float, default=4.0)
    training.add_argument("--rate", type=float, default=2e-3)
    training.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args(argv)
    for name in ("steps", "batch", "seconds", "rate"):
        if getattr(options, name, 1) <= 0:
            parser.error(f"--{name} is {getattr(options, name)}: it must be above 0")
    if options.bulk < 0:
        parser.error(f"--bulk is {options.bulk}: it must be 0 or more")
    if options.command == "align":
        return run(lambda: align(options.work, bulk=options.bulk))
    if options.command == "cluster":
        return run(lambda: cluster(options.work, bulk=options.bulk))
    return run(
        lambda: train(
            options.work,
            bulk=options.bulk,
            steps=options.steps,
            batch=options.batch,
            seconds=options.seconds,
            rate=options.rate,
            minutes=options.minutes,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
