"""`bark_jax.audio`: what is written is what is read; equal audio is equal bytes; broken files are errors."""

import io
import os
import struct
import wave

import numpy as np
import pytest

from bark_jax import audio
from bark_jax.audio import AudioError

soundfile = pytest.importorskip("soundfile")


def tone(seconds: float = 0.5, rate: int = 24_000, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_float_wav_is_exact_and_never_clipped(tmp_path):
    x = 3 * np.random.default_rng(0).standard_normal(1_001).astype(np.float32)
    audio.write(tmp_path / "x.wav", x, 24_000)
    read, rate = soundfile.read(tmp_path / "x.wav", dtype="float32")
    assert rate == 24_000 and soundfile.info(tmp_path / "x.wav").subtype == "FLOAT"
    np.testing.assert_array_equal(read, x)
    np.testing.assert_array_equal(audio.read(tmp_path / "x.wav", 24_000), x)


def test_pcm16_rounds_and_clips(tmp_path):
    x = np.array(
        [0, 1 / 32_768, 0.4 / 32_768, 0.6 / 32_768, -0.6 / 32_768, 0.5, 1, -1, 1.5, -7, 32_767 / 32_768], np.float32
    )
    expected = [0, 1, 0, 1, -1, 16_384, 32_767, -32_768, 32_767, -32_768, 32_767]
    for ending in (".wav", ".flac"):
        audio.write(tmp_path / f"x{ending}", x, 16_000, subtype="pcm16")
        read, rate = soundfile.read(tmp_path / f"x{ending}", dtype="int16")
        assert rate == 16_000 and read.tolist() == expected
    with wave.open(str(tmp_path / "x.wav")) as file:  # a second reader of the header
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 11)
    inside = np.random.default_rng(0).uniform(-1, 32_767 / 32_768, 5_000).astype(np.float32)
    audio.write(tmp_path / "y.wav", inside, 16_000, subtype="pcm16")
    assert abs(audio.read(tmp_path / "y.wav", 16_000) - inside).max() <= 0.5 / 32_768 + 1e-9


@pytest.mark.parametrize("ending", [".flac", ".ogg", ".mp3", ".FLAC"])
def test_other_formats(tmp_path, ending):
    x = tone(3.0)
    audio.write(tmp_path / f"x{ending}", x, 24_000)
    assert soundfile.info(tmp_path / f"x{ending}").format == ending[1:].upper()
    y = audio.read(tmp_path / f"x{ending}", 24_000)
    n = min(len(x), len(y))
    assert n > 0.95 * len(x)
    assert np.corrcoef(np.abs(np.fft.rfft(x[:n])), np.abs(np.fft.rfft(y[:n])))[0, 1] > 0.95


def test_long_vorbis(tmp_path):
    x = np.random.default_rng(0).uniform(-0.1, 0.1, 3_000_000).astype(np.float32)
    audio.write(tmp_path / "x.ogg", x, 24_000)
    assert soundfile.info(tmp_path / "x.ogg").frames == 3_000_000


def test_equal_audio_is_equal_bytes(tmp_path, monkeypatch):
    import time

    first = audio.wav_bytes(tone(), 24_000, subtype="float")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert audio.wav_bytes(tone(), 24_000, subtype="float") == first
    audio.write(tmp_path / "x.wav", tone(), 24_000)
    assert (tmp_path / "x.wav").read_bytes() == first
    assert struct.unpack("<I", first[4:8])[0] == len(first) - 8


def test_file_objects():
    x = tone()

    class Pipe:  # no seek, as a socket
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data)

    for ending, subtype in ((None, None), (".wav", "pcm16"), ("flac", None), (".ogg", None)):
        pipe = Pipe()
        audio.write(pipe, x, 24_000, format=ending, subtype=subtype)
        read = audio.read(io.BytesIO(pipe.data), 24_000)
        assert len(read) == len(x) and abs(read - x).max() < (0.1 if ending == ".ogg" else 1e-4)
    assert audio.wav_bytes(x, 24_000)[:4] == b"RIFF"


def test_empty_audio(tmp_path):
    none = np.zeros(0, np.float32)
    for name in ("x.wav", "x.ogg"):
        audio.write(tmp_path / name, none, 24_000)
        assert soundfile.info(tmp_path / name).frames == 0
        with pytest.raises(AudioError, match="empty"):
            audio.read(tmp_path / name, 24_000)
    for name in ("x.flac", "x.mp3"):
        with pytest.raises(AudioError, match="no samples"):
            audio.write(tmp_path / name, none, 24_000)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\)"),
        (np.float32(1), r"shape \(\)"),
        (np.zeros(3, np.int16), "int16"),
        (np.zeros(3, complex), "complex128"),
        (np.array(["a"]), "<U1"),
        ([[1.0], [2.0, 3.0]], "cannot be made an array"),
        (np.array([0, 1, np.nan, 1], np.float32), "NaN or infinity, first at sample 2"),
        (np.array([np.inf], np.float32), "first at sample 0"),
        (np.array([0, 1e300]), "first at sample 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_wrong_audio(tmp_path, value, message):
    with pytest.raises(AudioError, match=message):
        audio.write(tmp_path / "x.wav", value, 24_000)
    with pytest.raises(AudioError, match=message):
        audio.resample(value, 24_000, 16_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rate", [0, -1, 24_000.0, "24000", None, True, 10**9, 999])
def test_wrong_rates(tmp_path, rate):
    for call in (
        lambda: audio.write(tmp_path / "x.wav", tone(), rate),
        lambda: audio.resample(tone(), 24_000, rate),
        lambda: audio.resample(tone(), rate, 24_000),
        lambda: audio.read(tmp_path / "x.wav", rate),
    ):
        with pytest.raises(AudioError, match="sample rate"):
            call()


def test_wrong_formats(tmp_path):
    for name in ("x", "x.aac", "x.npz", "x.wav.txt"):
        with pytest.raises(AudioError, match=r"the formats are \.wav, \.flac, \.ogg, \.mp3"):
            audio.write(tmp_path / name, tone(), 24_000)
    with pytest.raises(AudioError, match=r"a \.flac file has pcm16"):
        audio.write(tmp_path / "x.flac", tone(), 24_000, subtype="float")
    with pytest.raises(AudioError, match=r"a \.wav file has float or pcm16"):
        audio.write(tmp_path / "x.wav", tone(), 24_000, subtype="PCM_24")
    with pytest.raises(AudioError, match=r"^A \.mp3 file of 384000 Hz cannot be written: [^<]*sample rates"):
        audio.write(tmp_path / "x.mp3", tone(), 384_000)
    assert list(tmp_path.iterdir()) == []


def test_writing_is_atomic(tmp_path, monkeypatch):
    audio.write(tmp_path / "x.wav", tone(), 24_000)
    before = (tmp_path / "x.wav").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            audio.write(tmp_path / "x.wav", tone(hz=300), 24_000)
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"] and (tmp_path / "x.wav").read_bytes() == before
    with pytest.raises(FileNotFoundError):
        audio.write(tmp_path / "none" / "x.wav", tone(), 24_000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(OSError):
        audio.write(tmp_path / "folder.wav", tone(), 24_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.wav", "x.wav"]


def test_a_full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError), open("/dev/full", "wb", buffering=0) as file:
        audio.write(file, tone(), 24_000)


def test_channels_are_averaged(tmp_path):
    for subtype in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE"):
        soundfile.write(tmp_path / "x.wav", np.stack([tone(), np.zeros_like(tone())], axis=1), 24_000, subtype=subtype)
        read = audio.read(tmp_path / "x.wav", 24_000)
        assert read.dtype == np.float32 and abs(read - tone() / 2).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_resampling(tmp_path, rate):
    there = audio.resample(tone(1.0), 24_000, rate)
    assert there.dtype == np.float32 and abs(len(there) - rate) <= 1
    expected = tone(1.0, rate)
    middle = slice(rate // 10, -rate // 10)
    n = min(len(there), len(expected))
    assert abs(there[:n] - expected[:n])[middle].max() < 1e-3
    audio.write(tmp_path / "x.wav", expected, rate)
    back = audio.read(tmp_path / "x.wav", 24_000)
    assert abs(back[2_400:-2_400] - tone(1.0)[: len(back)][2_400:-2_400]).max() < 1e-3


def test_resampling_removes_what_does_not_fit():
    # 10 kHz does not exist at 16 kHz; without a low-pass it would come back at 6 kHz.
    assert abs(audio.resample(tone(1.0, hz=10_000), 24_000, 16_000)[800:-800]).max() < 1e-3


def test_resampling_to_the_same_rate_copies():
    x = tone()
    y = audio.resample(x, 24_000, 24_000)
    np.testing.assert_array_equal(x, y)
    assert not np.shares_memory(x, y)
    assert len(audio.resample(np.zeros(0, np.float32), 24_000, 16_000)) == 0


def hostile() -> dict[str, bytes]:
    good = audio.wav_bytes(tone(), 24_000, subtype="float")
    flac = io.BytesIO()
    audio.write(flac, np.random.default_rng(0).uniform(-1, 1, 50_000), 24_000, format=".flac")
    data = flac.getvalue()
    nan = bytearray(good)
    nan[-400:-396] = struct.pack("<f", float("nan"))
    return {
        "empty": b"",
        "text": b"hello" * 100,
        "only RIFF": b"RIFF\0\0\0\0WAVE",
        "header only": good[:40],
        "no samples": audio.wav_bytes(tone()[:0], 24_000),
        "NaN": bytes(nan),
        "rate of 1 Hz": good.replace(struct.pack("<I", 24_000), struct.pack("<I", 1), 1),
        "rate of 4 GHz": good.replace(struct.pack("<I", 24_000), struct.pack("<I", 2**32 - 1), 1),
        "no channels": good[:22] + b"\0\0" + good[24:],
        "65,535 channels": good[:22] + b"\xff\xff" + good[24:],
        "flac cut in half": data[: len(data) // 2],
        "flac that promises 2**36 samples": data[:21] + bytes([data[21] | 0x0F]) + b"\xff" * 4 + data[26:],
        "zip": b"PK\3\4" + b"\0" * 1_000,
    }


@pytest.mark.parametrize("name", sorted(hostile()))
def test_broken_files(tmp_path, name):
    path = tmp_path / "broken.wav"
    path.write_bytes(hostile()[name])
    with pytest.raises(AudioError, match=r"broken\.wav"):
        audio.read(path, 24_000)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        audio.read(tmp_path / "none.wav", 24_000)
    with pytest.raises(AudioError, match="is not a file"):
        audio.read(tmp_path, 24_000)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="is not a file"):
        audio.read(tmp_path / "pipe.wav", 24_000)


def test_duration_limit(tmp_path):
    audio.write(tmp_path / "x.wav", tone(2.0), 24_000)
    assert len(audio.read(tmp_path / "x.wav", 24_000, max_duration_s=2.0)) == 48_000
    with pytest.raises(AudioError, match=r"longer than 1\.9 seconds"):
        audio.read(tmp_path / "x.wav", 24_000, max_duration_s=1.9)
