"""Step 2, semantic units: ``python -m recipes.bark_nano.units cluster|label|train``.

    cluster  features of whisper-base's encoder for a sample of the speech ─ k-means ─▶ WORK/units/clusters.npz
    label    the unit of every 20 ms of that sample, and of all that is held out: WORK/units/labels/ID.npy; and the
             vectors they were made of: WORK/units/vectors/ID.npy
    train    `bark_jax.units`, log mel → units: WORK/units/units.safetensors

Each can be stopped and started again. The corpus itself gets its units from the network (`rows`), as every voice prompt
will; whisper only teaches it. whisper's encoder adds the position in its window to what it hears, and its last
layer still shows it: with whole clips, the same sound has another unit at another time (fewer than 10 % agree when a
clip begins ten seconds later). So every frame is taken from the middle of a short window of its own, always from about
the same position, and the mean of that position is taken off: then 96 % agree when windows begin elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bark_jax.files import replacing
from recipes.bark_nano import corpus, listen, run

N_UNITS = 500
WINDOW, KEPT = 100, 20
"""Frames of 20 ms: of a window, and those in its middle that are used."""
FRAME = 320
"""Samples of a frame at `listen.RATE`."""
N_FEATURES = 512
"""Of whisper-base's encoder."""
TO_TEACHER = "to_teacher.weight"
"""Of the network in training only: what gives the teacher's vectors."""


class Features:
    """whisper-base's encoder: audio → a vector every 20 ms.

    Args:
      assets: see `listen.folder`.
    """

    def __init__(self, assets: Path, *, threads: int = 1):
        from faster_whisper import WhisperModel

        path = str(listen.folder(assets))
        self._model: Any = WhisperModel(path, device="cpu", compute_type="float32", cpu_threads=threads)

    def __call__(self, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (T, 512) of audio (N,) at 16 kHz, T = N // 320, and where in its window each was, (T,) int."""
        frames = len(audio) // FRAME
        lead = (WINDOW - KEPT) // 2
        count = -(-frames // KEPT)
        padded = np.zeros((lead + count * KEPT + WINDOW) * FRAME, np.float32)
        padded[lead * FRAME : lead * FRAME + frames * FRAME] = audio[: frames * FRAME]
        pieces = [padded[i * KEPT * FRAME : (i * KEPT + WINDOW) * FRAME] for i in range(count)]
        mels = np.stack([self._model.feature_extractor(piece, padding=0)[:, : 2 * WINDOW] for piece in pieces])
        found = np.asarray(self._model.encode(mels))[:, lead : lead + KEPT]
        return found.reshape(-1, found.shape[-1])[:frames], np.tile(np.arange(KEPT), count)[:frames]


class Clusters:
    """What makes a unit of a vector. `means` (KEPT, 512), `centres` (U, 512)."""

    def __init__(self, means: np.ndarray, centres: np.ndarray):
        self.means, self.centres = means, centres

    @classmethod
    def load(cls, work: Path) -> Clusters:
        with np.load(clusters_path(work)) as file:
            return cls(file["means"], file["centres"])

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Units (T,) uint16 of `comparable` vectors."""
        distance = np.sum(self.centres**2, axis=1) - 2 * x @ self.centres.T
        return np.argmin(distance, axis=1).astype(np.uint16)


def comparable(vectors: np.ndarray, positions: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What `Features` gives, (T, 512), without what is the position's; each vector with mean 0 and variance 1."""
    x = vectors - means[positions]
    x = x - x.mean(axis=-1, keepdims=True)
    return x / (x.std(axis=-1, keepdims=True) + 1e-6)


def sources(work: Path) -> list[tuple[str, Path, str]]:
    """(id, file, split) of all speech that has units: understood clips, and recordings of people."""
    heldout = {clip.id: clip for clip in corpus.read_plan(work) if clip.split == "heldout"}
    clips = {**corpus.good(work), **heldout}
    found = [(id_, corpus.audio_path(work, id_), clip.split) for id_, clip in clips.items()]
    for split in ("train", "test"):
        files = sorted(corpus.recorded(work, split).glob("*.flac"))
        found += [(f"recordings/{split}/{file.stem}", file, {"test": "heldout"}.get(split, split)) for file in files]
    return [item for item in found if item[1].is_file()]


def sample(work: Path, clips: int, *, seed: int = 0) -> list[tuple[str, Path]]:
    """`clips` of the clips to train on; of a smaller number, the first of them."""
    chosen = [(id_, path) for id_, path, split in sources(work) if split == "train"]
    return sorted(chosen, key=lambda item: hashlib.sha256(f"{seed} {item[0]}".encode()).digest())[:clips]


def cluster(work: Path, features: Features, *, clips: int, seed: int = 0) -> None:
    """Find the units in a sample of `clips` clips to train on."""
    from sklearn.cluster import MiniBatchKMeans

    chosen = sample(work, clips, seed=seed)
    if not chosen:
        raise ValueError(f"{work} has nothing to learn units from: run `corpus speak`, `check` and `record` first")
    parts = []
    for i, (_, path) in enumerate(chosen, 1):
        parts.append(features(listen.load(path)))
        if i % 200 == 0:
            print(f"{i} of {len(chosen)} clips", flush=True)
    vectors, positions = (np.concatenate(x) for x in zip(*parts, strict=True))
    means = np.stack([vectors[positions == i].mean(axis=0) for i in range(KEPT)])
    x = comparable(vectors, positions, means)
    found = MiniBatchKMeans(N_UNITS, batch_size=16_384, n_init=3, max_iter=200, random_state=seed).fit(x)
    path = clusters_path(work)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, means=means.astype(np.float32), centres=found.cluster_centers_.astype(np.float32))
    counts = np.bincount(found.labels_, minlength=N_UNITS)
    print(f"{len(x):,} frames; the least frequent unit has {counts.min()}, the most frequent {counts.max()}")


def clusters_path(work: Path) -> Path:
    return work / "units" / "clusters.npz"


def label_path(work: Path, id_: str) -> Path:
    return work / "units" / "labels" / f"{id_}.npy"


def vectors_path(work: Path, id_: str) -> Path:
    return work / "units" / "vectors" / f"{id_}.npy"


def label(work: Path, features: Features, *, clips: int) -> None:
    """The units of `sample`'s clips and of all held-out ones, where they are not there yet.

    Raises:
      ValueError: there are labels of other clusters, or nothing to label.
    """
    clusters = Clusters.load(work)
    wanted = [(id_, path) for id_, path, split in sources(work) if split == "heldout"] + sample(work, clips)
    if not wanted:
        raise ValueError(f"{work} has nothing to label: run `corpus speak`, `check` and `record` first")
    made_from = {"clusters": hashlib.sha256(clusters_path(work).read_bytes()).hexdigest()}
    corpus.of_one_kind(work / "units" / "labels", made_from, "other clusters", files="*.npy")
    waiting = [(id_, path) for id_, path in wanted if not label_path(work, id_).is_file()]  # the last to be written
    began, seconds = time.monotonic(), 0.0
    for i, (id_, source) in enumerate(waiting, 1):
        audio = listen.load(source)
        if len(audio) < FRAME:
            raise ValueError(f"{source} lasts {len(audio) / listen.RATE:.3f} s: a unit takes {FRAME / listen.RATE:g}")
        x = comparable(*features(audio), clusters.means)
        for path, array in ((vectors_path(work, id_), x.astype(np.float16)), (label_path(work, id_), clusters(x))):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, array)
        seconds += len(audio) / listen.RATE
        if i % 200 == 0 or i == len(waiting):
            speed = seconds / (time.monotonic() - began)
            print(f"{i:,} of {len(waiting):,}, {seconds / 3600:.2f} h, {speed:.1f} x real time", flush=True)


# --- the network ------------------------------------------------------------------------------------------------------


class Crop(NamedTuple):
    """B rows of T units, at other levels than their clips, with some noise."""

    audio: np.ndarray
    """(B, hop · T) at the codec's rate."""
    units: np.ndarray
    """(B, T) int32, -1 beyond the end of a clip."""
    vectors: np.ndarray
    """(B, T, 512), the teacher's."""


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


def train(work: Path, *, steps: int, batch: int, seconds: float, rate: float, minutes: float, seed: int = 0) -> None:
    """Teach the network the units, and the vectors behind them, which say more; goes on where it was."""
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from flax import nnx

    from bark_jax import weights
    from bark_jax.units import LogMelUnits, UnitsConfig, save
    from recipes.bark_nano.train_codec import muon_and_adam, samples

    chosen = [(id_, path) for id_, path, split in sources(work) if split == "train" and label_path(work, id_).is_file()]
    if not chosen:
        raise ValueError(f"{work} has no labelled clips to train on: run `units label` first")
    config = UnitsConfig(n_units=N_UNITS)
    module = nnx.eval_shape(lambda: LogMelUnits(config, rngs=nnx.Rngs(seed)))
    params: Any = weights.names(LogMelUnits(config, rngs=nnx.Rngs(seed)))
    params[TO_TEACHER] = 0.02 * jax.random.normal(jax.random.key(seed), (1, config.width, N_FEATURES))
    average = params
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, min(100, steps // 10), steps, 0.02 * rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon_and_adam(schedule, schedule, 3))

    @jax.jit
    def step(params: Any, average: Any, state: Any, crop: Crop, number: jax.Array) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            tensors = dict(params)
            to_teacher = tensors.pop(TO_TEACHER)[0]
            network = weights.fill(module, tensors)
            spectrum = disturbed(network.spectrum(crop.audio), jax.random.fold_in(jax.random.key(seed), number))
            hidden = network.hidden(spectrum)
            logits, found = network.head(hidden), hidden @ to_teacher
            known = crop.units >= 0
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(crop.units, 0))
            off = jnp.mean(jnp.square(found - crop.vectors), axis=-1)  # of vectors of variance 1
            right = jnp.sum((jnp.argmax(logits, axis=-1) == crop.units) & known) / jnp.sum(known)
            return jnp.sum(jnp.where(known, nll + off, 0)) / jnp.sum(known), right

        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        params: Any = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, b: 0.99 * a + 0.01 * b, average, params)
        return params, average, state, value, right

    state = optimizer.init(params)
    folder = (work / "units" / "checkpoints").absolute()
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1))
    number = manager.latest_step() or 0
    if number:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, average, state))
        params, average, state = manager.restore(number, args=ocp.args.StandardRestore(abstract))
    known = [
        (samples(path, config.sample_rate), np.load(label_path(work, id_)), np.load(vectors_path(work, id_)))
        for id_, path in chosen
    ]
    print(f"step {number}; {len(known):,} clips", flush=True)
    began = time.monotonic()
    while number < steps and time.monotonic() - began < 60 * minutes:
        crop = crops(known, np.random.default_rng([seed, number]), batch, seconds, config)
        params, average, state, value, right = step(params, average, state, crop, number)
        number += 1
        if number % 50 == 0 or number == steps:
            if not np.isfinite(float(value)):
                raise ValueError(f"the loss at step {number} is {float(value)}: begin anew with a lower --rate")
            print(f"{number} loss {float(value):.3f}, right {float(right):.1%}", flush=True)
        if number % 500 == 0:
            manager.save(number, args=ocp.args.StandardSave((params, average, state)))
    if number == 0:
        raise ValueError(f"no step was made in {minutes:g} minutes: nothing is written")
    if number != manager.latest_step():
        manager.save(number, args=ocp.args.StandardSave((params, average, state)))
    manager.wait_until_finished()
    half = {name: np.asarray(x).astype(weights.DTYPES["bfloat16"]) for name, x in average.items() if name != TO_TEACHER}
    save(work / "units" / "units.safetensors", config, half)


def crops(
    known: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    batch: int,
    seconds: float,
    config: Any,
) -> Crop:
    """Crops of clips.

    Args:
      known: audio (samples,) int16, units (T,) and vectors (T, 512) of each clip.
    """
    frames = int(seconds * config.rate_hz)
    audio = np.zeros((batch, frames * config.hop), np.float32)
    units = np.full((batch, frames), -1, np.int32)
    vectors = np.zeros((batch, frames, N_FEATURES), np.float32)
    for row in range(batch):
        clip, labels, given = known[int(rng.integers(len(known)))]
        start = int(rng.integers(max(1, len(labels) - frames + 1)))
        part = labels[start : start + frames]
        samples = clip[start * config.hop : (start + len(part)) * config.hop].astype(np.float32) / 32768
        audio[row, : len(samples)] = samples * 10 ** rng.uniform(-0.7, 0.2)
        audio[row] += 10 ** rng.uniform(-5, -2.3) * rng.standard_normal(audio.shape[1]).astype(np.float32)
        units[row, : len(part)] = part
        vectors[row, : len(part)] = given[start : start + frames]
    return Crop(audio, units, vectors)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.bark_nano.units", description="Make semantic units.")
    places = corpus.places_of_files("folder where whisper is kept")
    hearing = argparse.ArgumentParser(add_help=False)
    hearing.add_argument("--threads", type=int, default=2, help="of whisper's computation (2)")
    commands = parser.add_subparsers(dest="command", required=True)
    clustering = commands.add_parser("cluster", parents=[places, hearing], help="find the units")
    clustering.add_argument("--clips", type=int, default=2000)
    labelling = commands.add_parser(
        "label", parents=[places, hearing], help="units of a sample, for the network to learn from"
    )
    labelling.add_argument("--clips", type=int, default=3000)
    training = commands.add_parser("train", parents=[places], help="teach the network")
    training.add_argument("--steps", type=int, default=3000)
    training.add_argument("--batch", type=int, default=16)
    training.add_argument("--seconds", type=float, default=4.0)
    training.add_argument("--rate", type=float, default=2e-3)
    training.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args(argv)
    for name in ("threads", "steps", "batch", "seconds", "rate"):
        if getattr(options, name, 1) <= 0:
            parser.error(f"--{name} is {getattr(options, name)}: it must be above 0")
    if getattr(options, "clips", 0) < 0:
        parser.error(f"--clips is {options.clips}: it must be 0 or more")
    work, assets = options.work, options.assets or options.work / "assets"
    if options.command == "cluster":
        return run(lambda: cluster(work, Features(assets, threads=options.threads), clips=options.clips))
    if options.command == "label":
        return run(lambda: label(work, Features(assets, threads=options.threads), clips=options.clips))
    return run(
        lambda: train(
            work,
            steps=options.steps,
            batch=options.batch,
            seconds=options.seconds,
            rate=options.rate,
            minutes=options.minutes,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
