"""Laws of `bark_jax.codec`: streamed = whole, row of a batch = the clip alone, no recompilation, and port = encodec.

The last part needs torch and encodec and skips without them; all networks but one are tiny.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bark_jax.codec import (
    ABSENT,
    Codec,
    decode,
    decode_chunk,
    decoder_state,
    encode,
    encoder_state,
    start_frames,
)
from bark_jax.config import CodecConfig

SMALL = CodecConfig(n_filters=4, dimension=16)
ODD = CodecConfig(
    dimension=6,
    n_filters=8,
    ratios=(3, 2),
    kernel_size=5,
    last_kernel_size=3,
    residual_kernel_size=4,
    n_residual_layers=3,
    dilation_base=3,
    compress=4,
    lstm_layers=1,
    n_codebooks=3,
    codebook_size=64,
)
"""Unlike the published network in every field; its second residual units reach further back than a frame."""
PLAIN = CodecConfig(dimension=8, n_filters=2, ratios=(2, 2), lstm_layers=0, n_codebooks=2, codebook_size=32)
WIDE = CodecConfig(
    dimension=6,
    n_filters=2,
    ratios=(1, 10),
    widths=(12, 16, 2),
    residual_layers=(3, 0),
    kernel_size=3,
    last_kernel_size=3,
    dilation_base=1,
    lstm_layers=0,
    n_codebooks=2,
    codebook_size=32,
)
"""As bark-nano's: nearly all of it works at the frame rate, with widths of its own."""


def random_codec(config: CodecConfig) -> Codec:
    """Random weights, drawn in one compiled function: op by op takes many times longer."""
    graph = nnx.split(nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0))))[0]
    return nnx.merge(graph, jax.jit(lambda: nnx.split(Codec(config, rngs=nnx.Rngs(0)))[1])())


@pytest.fixture(scope="module")
def small() -> Codec:
    return random_codec(SMALL)


def random_codes(config: CodecConfig, frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.codebook_size, (config.n_codebooks, frames), np.int32)


def random_audio(n: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


class Compilations:
    """Counts XLA compilations in the process, whoever asks for them."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


COMPILATIONS = Compilations()


# Shapes and names


def test_tensor_names_are_those_of_the_checkpoint_format() -> None:
    abstract = nnx.eval_shape(lambda: Codec(CodecConfig(), rngs=nnx.Rngs(0)))
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(abstract))}
    expected = {"quantizer.codebooks": (8, 1024, 128)}

    def conv(name: str, *shape: int, out: int) -> None:
        expected.update({f"{name}.weight": shape, f"{name}.bias": (out,)})

    def residual(name: str, width: int) -> None:
        conv(f"{name}.conv1", 3, width, width // 2, out=width // 2)
        conv(f"{name}.conv2", 1, width // 2, width, out=width)
        conv(f"{name}.shortcut", 1, width, width, out=width)

    conv("encoder.conv_in", 7, 1, 32, out=32)
    conv("encoder.conv_out", 7, 512, 128, out=128)
    conv("decoder.conv_in", 7, 128, 512, out=512)
    conv("decoder.conv_out", 7, 32, 1, out=1)
    for i, (ratio, width) in enumerate(((2, 32), (4, 64), (5, 128), (8, 256))):
        residual(f"encoder.stages.{i}.residuals.0", width)
        conv(f"encoder.stages.{i}.down", 2 * ratio, width, 2 * width, out=2 * width)
    for i, (ratio, width) in enumerate(((8, 512), (5, 256), (4, 128), (2, 64))):
        conv(f"decoder.stages.{i}.up", width, 2 * ratio, width // 2, out=width // 2)
        residual(f"decoder.stages.{i}.residuals.0", width // 2)
    for part, i in itertools.product(("encoder", "decoder"), range(2)):
        own = f"{part}.lstm.layers.{i}"
        expected |= {f"{own}.weight_ih": (2048, 512), f"{own}.weight_hh": (2048, 512), f"{own}.bias": (2048,)}
    assert shapes == expected


def test_shapes_and_dtypes(small: Codec) -> None:
    audio = decode(small, random_codes(SMALL, 3))
    assert audio.shape == (960,) and audio.dtype == np.float32
    for n, frames in ((1, 1), (319, 1), (320, 1), (321, 2)):
        codes = encode(small, random_audio(n))
        assert codes.shape == (8, frames) and codes.dtype == np.int32
        assert codes.min() >= 0 and codes.max() < 1024


@pytest.mark.parametrize(("config", "frames"), [(SMALL, 7), (CodecConfig(), 7), (ODD, 10), (PLAIN, 7), (WIDE, 3)])
def test_start_frames(config: CodecConfig, frames: int) -> None:
    """The longest left padding plus one sample, in frames: 27 + 1 at 3 samples a frame for ODD."""
    assert start_frames(config) == frames


def test_a_start_of_start_frames_is_enough_and_one_less_is_not() -> None:
    codec = random_codec(ODD)
    codes, least = random_codes(ODD, 24), start_frames(ODD)
    whole = decode(codec, codes, chunk=32)
    step = jax.jit(lambda state, codes: decode_chunk(codec, state, codes))

    def in_two(first: int) -> np.ndarray:
        pieces = np.full((2, 1, ODD.n_codebooks, 24), ABSENT, np.int32)
        pieces[0, 0, :, :first], pieces[1, 0, :, : 24 - first] = codes[:, :first], codes[:, first:]
        state, a = step(decoder_state(ODD, 1), pieces[0])
        _, b = step(state, pieces[1])
        return np.concatenate([a[0], b[0]])[[*range(6 * first), *range(144, 6 * (48 - first))]]

    np.testing.assert_allclose(in_two(least), whole, atol=1e-5)
    assert np.abs(in_two(least - 1) - whole).max() > 1e-3


# Streamed = whole


@pytest.mark.parametrize("frames", [1, 6, 7, 65, 150])
def test_decode_in_chunks_equals_the_whole(small: Codec, frames: int) -> None:
    codes = random_codes(SMALL, frames)
    whole = jax.jit(lambda c: small.decoder(small.embed(c)))(codes[None])[0]
    for chunk in (7, 16, 64):
        np.testing.assert_allclose(decode(small, codes, chunk=chunk), whole, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2241, 20_480, 30_001])
def test_encode_in_chunks_equals_the_whole(small: Codec, n: int) -> None:
    audio = random_audio(n)
    whole = np.asarray(jax.jit(small.encoder)(audio[None]))
    step = jax.jit(small.encoder.step)
    for chunk in (7, 64):
        state, parts, size = encoder_state(SMALL, 1), [], chunk * 320
        for start in range(0, n, size):
            piece = np.zeros((1, size), np.float32)
            real = min(size, n - start)
            piece[0, :real] = audio[start : start + real]
            state, x = step(state, piece, np.array([real], np.int32))
            parts.append(x)
        np.testing.assert_allclose(np.concatenate(parts, axis=1)[:, : whole.shape[1]], whole, atol=1e-5)
    codes = np.asarray(small.quantize(jnp.asarray(whole)))[0]
    assert np.mean(encode(small, audio) == codes) > 0.99  # rounding may flip a tie, and then that frame's later codes


def test_rows_may_pause_and_have_pieces_of_their_own_length(small: Codec) -> None:
    step = jax.jit(lambda state, codes: decode_chunk(small, state, codes))
    codes = [random_codes(SMALL, 40, seed) for seed in range(2)]
    plans = ([16, 0, 3, 0, 1, 16, 4], [0, 7, 16, 5, 0, 0, 12])
    state, heard, at = decoder_state(SMALL, 2), ([], []), [0, 0]
    for sizes in zip(*plans, strict=True):
        piece = np.full((2, 8, 16), ABSENT, np.int32)
        for row, size in enumerate(sizes):
            piece[row, :, :size] = codes[row][:, at[row] : at[row] + size]
            at[row] += size
        state, audio = step(state, piece)
        for row, size in enumerate(sizes):
            heard[row].append(np.asarray(audio[row, : 320 * size]))
    for row in range(2):
        np.testing.assert_allclose(np.concatenate(heard[row]), decode(small, codes[row]), atol=1e-5)


def test_a_row_can_be_replaced(small: Codec) -> None:
    step = jax.jit(lambda state, codes: decode_chunk(small, state, codes))
    a, b, c = (random_codes(SMALL, 32, seed)[:, None].swapaxes(0, 1) for seed in range(3))
    state, _ = step(decoder_state(SMALL, 2), np.concatenate([a, b])[..., :16])
    state = jax.tree.map(lambda leaf, new: leaf.at[0].set(new[0]), state, decoder_state(SMALL, 1))
    _, audio = step(state, np.concatenate([c[..., :16], b[..., 16:]]))
    np.testing.assert_allclose(audio[0], decode(small, c[0])[: 16 * 320], atol=1e-5)
    np.testing.assert_allclose(audio[1], decode(small, b[0])[16 * 320 :], atol=1e-5)


def test_later_codes_never_change_earlier_audio(small: Codec) -> None:
    codes = random_codes(SMALL, 80)
    changed = codes.copy()
    changed[:, 50:] = random_codes(SMALL, 30, seed=9)
    before, after = decode(small, codes), decode(small, changed)
    assert np.array_equal(before[: 50 * 320], after[: 50 * 320])
    assert not np.array_equal(before[50 * 320 :], after[50 * 320 :])


# Row of a batch = the clip alone


def test_decode_row_does_not_depend_on_neighbours_or_slot(small: Codec) -> None:
    mine = random_codes(SMALL, 70)
    others = [random_codes(SMALL, frames, seed=frames) for frames in (1, 5, 130, 33, 70)]
    expected = decode(small, [mine, others[0], others[1]])[0]
    for slot, (x, y) in enumerate(((others[2], others[3]), (others[4], mine), (others[0], others[2]))):
        batch = [x, y]
        batch.insert(slot, mine)
        assert np.array_equal(decode(small, batch)[slot], expected)
    np.testing.assert_allclose(decode(small, mine), expected, atol=1e-5)


def test_encode_row_does_not_depend_on_neighbours_or_slot(small: Codec) -> None:
    mine = random_audio(23_456)
    others = [random_audio(n, seed=n) for n in (1, 1000, 50_000)]
    expected = encode(small, [mine, others[0], others[1]])[0]
    for slot in range(3):
        batch = [others[2], others[1]]
        batch.insert(slot, mine)
        assert np.array_equal(encode(small, batch)[slot], expected)


def test_padded_batch_equals_list(small: Codec) -> None:
    lengths = [3, 70, 0]
    padded = np.stack([random_codes(SMALL, 100, seed) for seed in range(3)])
    listed = decode(small, [row[:, :n] for row, n in zip(padded, lengths, strict=True)])
    padded[0, :, 3:] = -7  # beyond a length anything may stand
    batch = decode(small, padded, lengths)
    assert [len(clip) for clip in batch] == [960, 22_400, 0]
    assert all(np.array_equal(a, b) for a, b in zip(batch, listed, strict=True))

    samples = np.stack([random_audio(5000, seed) for seed in range(2)])
    samples[0, 777:] = np.nan
    batch = encode(small, samples, [777, 5000])
    listed = encode(small, [samples[0, :777], samples[1]])
    assert [clip.shape for clip in batch] == [(8, 3), (8, 16)]
    assert all(np.array_equal(a, b) for a, b in zip(batch, listed, strict=True))


def test_no_clips_give_no_clips_and_no_frames_no_samples(small: Codec) -> None:
    assert decode(small, []) == [] and encode(small, []) == []
    assert decode(small, np.zeros((8, 0), int)).shape == (0,)


def test_fewer_codebooks(small: Codec) -> None:
    codes = random_codes(SMALL, 10)
    x = sum(np.asarray(small.quantizer.codebooks[...])[q][codes[q]] for q in range(2))
    np.testing.assert_allclose(decode(small, codes[:2]), jax.jit(small.decoder)(x[None])[0], atol=1e-5)


# No recompilation, and training


def test_new_lengths_never_recompile(small: Codec) -> None:
    decode(small, random_codes(SMALL, 5))
    decode(small, [random_codes(SMALL, 5)] * 2)
    encode(small, random_audio(5))
    before = COMPILATIONS.count
    for frames in (1, 2, 6, 7, 63, 64, 65, 200):
        decode(small, random_codes(SMALL, frames))
        decode(small, [random_codes(SMALL, frames), random_codes(SMALL, 9)])
        decode(small, random_codes(SMALL, frames)[:2])
        encode(small, random_audio(frames * 111))
    assert COMPILATIONS.count == before
    decode(small, random_codes(SMALL, 5), chunk=9)
    assert COMPILATIONS.count > before  # the counter does count


@pytest.mark.parametrize("config", [PLAIN, WIDE])
def test_gradients_reach_every_weight(config: CodecConfig) -> None:
    codec = random_codec(config)
    audio = jnp.asarray(random_audio(80)[None])

    @jax.jit
    @jax.grad
    def gradient(codec: Codec) -> jax.Array:
        return jnp.mean(jnp.square(codec.decoder(codec.encoder(audio)) - audio))

    for path, leaf in nnx.to_flat_state(nnx.state(gradient(codec))):
        assert np.isfinite(leaf[...]).all(), path
        assert (path[0] == "quantizer") != bool(np.any(leaf[...])), path


# Bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (8, 2)}, "widths is .*3 numbers of channels"),
        ({"widths": (8, 8, 4)}, "the last of them n_filters = 2"),
        ({"widths": (8, 0, 2)}, "widths is"),
        ({"residual_layers": (1,)}, "residual_layers is .*2 numbers"),
        ({"residual_layers": (1, -1)}, "0 or more"),
        ({"widths": (8, 5, 2), "residual_layers": (1, 1)}, "compress is 2: it must divide the 5 channels"),
        ({"n_filters": 3}, "compress is 2: it must divide n_filters = 3"),
    ],
)
def test_widths_and_residual_layers_must_fit(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **fields)


CODES = np.zeros((8, 4), int)
AUDIO = np.zeros(100, np.float32)


@pytest.mark.parametrize(
    ("call", "args", "message"),
    [
        (decode, (CODES.astype(float),), "dtype float64"),
        (decode, (CODES + 1024,), "0 to 1023"),
        (decode, (CODES - 1,), "values from -1"),
        (decode, (np.zeros((9, 4), int),), "1 to 8 codebooks"),
        (decode, (np.zeros((0, 4), int),), "1 to 8 codebooks"),
        (decode, (np.zeros(4, int),), r"shape \(4,\)"),
        (decode, (np.zeros((1, 1, 8, 4), int),), r"shape \(1, 1, 8, 4\)"),
        (decode, ([CODES, CODES[0]],), r"codes\[1\]"),
        (decode, ([CODES], [4]), "lengths"),
        (decode, (CODES, [4]), "lengths"),
        (decode, (CODES[None], [5]), r"lengths\[0\] is 5"),
        (decode, (CODES[None], [-1]), r"lengths\[0\] is -1"),
        (decode, (CODES[None], [1, 2]), "each of the 1 rows"),
        (decode, (CODES[None], [1.5]), "integer"),
        (encode, (AUDIO[:0],), "empty"),
        (encode, (AUDIO.astype(np.int16),), "dtype int16"),
        (encode, (AUDIO + np.nan,), "finite"),
        (encode, (AUDIO + np.inf,), "finite"),
        (encode, ([AUDIO, AUDIO[None]],), r"audio\[1\].*mono"),
        (encode, (AUDIO[None, None],), "shape"),
        (encode, (np.float32(1),), "shape"),
        (encode, (AUDIO[None], [0]), "empty"),
        (encode, (AUDIO[None], [101]), "0 to 100"),
    ],
)
def test_bad_input_is_named(small: Codec, call, args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small, *args)


@pytest.mark.parametrize(("call", "value"), [(decode, CODES), (encode, AUDIO)])
def test_a_chunk_too_small_is_refused(small: Codec, call, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match="chunk is 6: it must be at least 7"):
        call(small, value, chunk=6)


# Port = reference


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    torch = pytest.importorskip("torch")
    import codec_reference

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # clips are short; threads that wait for each other cost more than they do
    yield codec_reference
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(reference: ModuleType) -> SimpleNamespace:
    model = reference.reference(SMALL)
    return SimpleNamespace(model=model, codec=reference.ours(model, SMALL))


def close_calls(reference: ModuleType, model: object, audio: np.ndarray, codes: np.ndarray) -> int:
    """Frames whose codes differ from the reference's; each must begin with a decision closer than 1e-5 relative."""
    theirs = reference.reference_codes(model, audio)
    assert codes.shape == theirs.shape
    frames = np.flatnonzero((codes != theirs).any(axis=0))
    if len(frames):
        margins = reference.margins(model, audio, theirs)
        for f in frames:
            q = np.flatnonzero(codes[:, f] != theirs[:, f])[0]
            assert margins[q, f] <= 1e-5, f"frame {f}, codebook {q}: margin {margins[q, f]:.2e}"
    return len(frames)


def test_codes_of_20_seconds(reference: ModuleType, pair: SimpleNamespace) -> None:
    audio = reference.noise(20 * 24_000, seed=1)
    theirs = reference.reference_codes(pair.model, audio)
    assert min(len(np.unique(row)) for row in theirs) >= 100
    assert close_calls(reference, pair.model, audio, encode(pair.codec, audio)) <= 3

    # Each codebook on its own, given the reference's earlier choices.
    x = jax.jit(pair.codec.encoder)(audio[None])[0]
    margins = reference.margins(pair.model, audio, theirs)
    assert np.mean(margins <= 1e-5) < 1e-3
    for table, code, margin in zip(pair.codec.quantizer.codebooks[...], theirs, margins, strict=True):
        single = nnx.clone(pair.codec.quantizer)
        single.codebooks[...] = table[None]
        ours = np.asarray(single.encode(x))[:, 0]
        assert np.array_equal(ours[margin > 1e-5], code[margin > 1e-5])
        x = x - table[code]


def test_codes_of_every_residue(reference: ModuleType, pair: SimpleNamespace) -> None:
    """Every length mod 320; the first clips are shorter than paddings, some end just around a piece of 64 frames."""
    differing = 0
    for residue in range(320):
        n = residue + 320 * (0, 0, 1, 1, 2, 6, 7, 63)[residue % 8] or 320
        audio = reference.noise(n, seed=residue)
        differing += close_calls(reference, pair.model, audio, encode(pair.codec, audio))
    assert differing <= 3


def test_codes_of_the_shortest_clips(reference: ModuleType, pair: SimpleNamespace) -> None:
    lengths = [*range(1, 64), *range(300, 350), *range(2230, 2250)]
    audio = [reference.noise(n, seed=n) for n in lengths]
    batch = encode(pair.codec, audio)
    assert sum(close_calls(reference, pair.model, a, c) for a, c in zip(audio, batch, strict=True)) <= 3


def test_audio_of_every_short_length(reference: ModuleType, pair: SimpleNamespace) -> None:
    for frames in (*range(1, 25), 63, 64, 65, 127, 128, 129, 300, 1154):
        codes = random_codes(SMALL, frames, seed=frames)
        expected = reference.reference_audio(pair.model, codes)
        assert 0.05 < expected.std() < 1
        np.testing.assert_allclose(decode(pair.codec, codes), expected, atol=1e-4)


def test_audio_of_fewer_codebooks(reference: ModuleType, pair: SimpleNamespace) -> None:
    for q in range(1, 8):
        codes = random_codes(SMALL, 9)[:q]
        np.testing.assert_allclose(decode(pair.codec, codes), reference.reference_audio(pair.model, codes), atol=1e-4)


@pytest.mark.parametrize("config", [ODD, PLAIN, WIDE])
def test_other_shapes(reference: ModuleType, config: CodecConfig) -> None:
    model = reference.reference(config, seconds=0.5)
    codec = reference.ours(model, config)
    differing = 0
    for frames in range(1, 2 * start_frames(config) + 3):
        codes = random_codes(config, frames, seed=frames)
        for chunk in (start_frames(config), 64):
            audio = decode(codec, codes, chunk=chunk)
            np.testing.assert_allclose(audio, reference.reference_audio(model, codes), atol=1e-4)
    for n in range(1, config.hop_length * (2 * start_frames(config) + 3)):
        audio = reference.noise(n, seed=n)
        for chunk in (start_frames(config), 64):
            differing += close_calls(reference, model, audio, encode(codec, audio, chunk=chunk))
    assert differing <= 3


def test_published_size(reference: ModuleType) -> None:
    config = CodecConfig()
    model = reference.reference(config, seconds=8)
    codec = reference.ours(model, config)
    audio = reference.noise(14 * 24_000 + 77, seed=3)
    codes = reference.reference_codes(model, audio)
    assert min(len(np.unique(row)) for row in codes) >= 100
    assert close_calls(reference, model, audio, encode(codec, audio)) <= 3
    expected = reference.reference_audio(model, codes)
    np.testing.assert_allclose(decode(codec, codes), expected, atol=1e-4)
    for clip in decode(codec, [codes, codes]):  # several rows take another path through the LSTM
        np.testing.assert_allclose(clip, expected, atol=1e-4)
