"""The benchmarks run, agree with the reference, and record what their README says. Sizes are tiny, so are numbers."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import socket
import struct
import sys
import time

import numpy as np
import pytest

from benchmarks import harness


def test_warm_up_runs_until_nothing_compiles():
    import jax

    f = jax.jit(lambda x: x * 2 + 1)
    warm = harness.warm_up(lambda: np.asarray(f(np.ones(3, np.float32))))
    assert warm.runs == 2 and not warm.compiled and warm.first_s > 0
    np.testing.assert_array_equal(warm.result, [3, 3, 3])

    lengths = iter(range(4, 100))
    warm = harness.warm_up(lambda: f(np.ones(next(lengths), np.float32)))  # compiles at every run
    assert warm.compiled and warm.runs == harness.MOST_WARM_UPS

    assert harness.warm_up(lambda: 7, compiles=False).runs == 1


def test_interleaved_takes_turns():
    order = []
    runs = harness.interleaved({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), time.sleep(0.02))}, 3)
    assert order == ["a", "b"] * 3
    assert [len(part) for part in runs.values()] == [3, 3]
    assert all(took >= 0.02 for took, _ in runs["b"])


def test_environment_names_the_device_and_nobody():
    import jax

    record = harness.environment(jax.devices("cpu")[0])
    assert record["device"]["platform"] == "cpu" and record["device"]["cores"] >= 1 and record["device"]["name"]
    assert {"python", "jax", "jaxlib", "flax", "numpy"} <= set(record["versions"])
    assert set(record) >= {"commit", "dirty", "date", "load_before", "kernels"}
    text = json.dumps(record)
    assert socket.gethostname() not in text and str(harness.ROOT) not in text
    assert len(getpass.getuser()) < 4 or getpass.getuser() not in text


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = harness.write_json(tmp_path / "new" / "x.json", harness.rounded({"a": [1.23456789, 7, None]}))
    assert json.loads(path.read_text()) == {"a": [1.2346, 7, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        harness.write_json(path, {"a": object()})
    assert json.loads(path.read_text())["a"][1] == 7
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    assert harness.results_path("cpu-small") == harness.RESULTS / "cpu-small.json"
    assert harness.results_path("there/cpu.json").name == "cpu.json"


class TestPeers:
    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")
        for name in ("transformers", "bark", "encodec"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"needs {name}")

    def test_both_sides_do_the_same(self, monkeypatch):
        import torch

        from benchmarks import peers

        class Program:  # in the place of bark.cpp
            def speak(self, text):
                return dict.fromkeys(peers.STAGES, 5.0), np.zeros(15 * 320, np.float32)

        monkeypatch.setattr(peers, "no_bark_cpp", lambda *_: None)
        monkeypatch.setattr(peers, "_bark_cpp", lambda *_: {"cpp_f16": Program()})
        threads, multinomial = torch.get_num_threads(), torch.multinomial
        try:
            small = {"n_filters": 4, "dimension": 16}
            result = peers.run(
                (1, 2, 16),
                seconds=0.2,
                best="int8",
                others=True,
                cpp=True,
                repeat=1,
                codec=small,
                log=lambda line: None,
            )
        finally:
            torch.set_num_threads(threads)
        assert torch.multinomial is multinomial
        assert result["tokens_equal"] is True
        assert list(result["cases"]) == ["none", "v2/en_speaker_6"]
        for name, case in result["cases"].items():
            assert case["semantic_tokens"] == 10 and case["audio_s"] == pytest.approx(15 / 75)
            assert case["audio_difference"] < 1e-4
            assert case["compiled_while_timing"] == 0
            assert set(case["ratios"]) == {*peers.STAGES, "total"}
            plain = {"cpp_f16"} if name == "none" else set()
            assert set(case["seconds"]) == {"ours", "suno", "best", "best_b8", "hf_f32", "hf_bf16"} | plain
            others = case["same_tokens_of_others"]
            assert set(others["hf_f32"].values()) == {1.0} and others["best"] == others["best_b8"]
            assert case["rtf"]["best_b8"] == pytest.approx(case["seconds"]["best_b8"]["total"] / 8 / 0.2, rel=1e-3)
        ours, suno = (result["seconds"][side]["total"] for side in ("ours", "suno"))
        assert result["ratios"]["total"] == pytest.approx(ours / suno, rel=1e-3)
        worst = min(
            case["seconds"]["suno"]["total"] / case["seconds"]["ours"]["total"] for case in result["cases"].values()
        )
        assert result["ratios"]["f32_b1_vs_suno"] == pytest.approx(worst, rel=1e-3)
        assert {"best_b1_vs_suno", "best_b1_vs_hf_bf16", "best_b8_vs_suno"} < set(result["ratios"])
        assert result["seconds"]["cpp_f16"] == {**dict.fromkeys(peers.STAGES, 5.0), "total": 20.0}
        best = result["seconds"]["best"]["total"]
        assert result["ratios"]["best_b1_vs_bark_cpp"] == pytest.approx(20 / best, rel=1e-3)
        assert result["ratios"]["semantic_floor_fraction"] == pytest.approx(result["semantic_floor"]["fraction"])
        assert result["compile_seconds"]["semantic"] > 0
        assert result["config"]["size"] == [1, 2, 16]
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        text = peers.report(result)
        assert text.count("tokens equal: yes") == 2 and all(stage in text for stage in peers.STAGES)
        assert text.count("tokens of best_b8 as Suno's") == 2 and "semantic step, best weights" in text

    def test_the_command_refuses_what_it_cannot_do(self, capsys):
        from benchmarks import peers

        for wrong in (["--size", "2,3,32"], ["--size", "tiny"], ["--stages", "text"], ["--seconds", "nan"],
                      ["--repeat", "0"]):  # fmt: skip
            with pytest.raises(SystemExit) as exit_:
                peers.main(wrong)
            assert exit_.value.code == 2 and wrong[1] in capsys.readouterr().err
        assert peers.main(["--voice", "v2/xx_speaker_6", "--size", "1,2,16"]) == 1
        assert "xx_speaker_6" in capsys.readouterr().err

    def test_bark_cpp_is_left_out_with_a_reason(self, monkeypatch):
        from benchmarks import peers

        monkeypatch.setitem(sys.modules, "bark_cpp", None)
        assert "pip install bark-cpp-python" in peers.no_bark_cpp("cpu", 200, [None])
        assert peers.no_bark_cpp("gpu", 200, [None]) == "its package is built for CPUs"
        assert peers.no_bark_cpp("cpu", 200, ["a voice"]) == "it has no voices"
        assert "1024 frames" in peers.no_bark_cpp("cpu", 682, [None])
        monkeypatch.setitem(sys.modules, "bark_cpp", sys)
        assert peers.no_bark_cpp("cpu", 681, ["a voice", None]) is None

    def test_what_bark_cpp_prints(self, capfd):
        from benchmarks import peers

        with peers.printed() as lines:
            os.write(1, b"x:   sample time =  1.00 ms / 3 tokens\nx:    total time =  1500.00 ms\n")
            os.write(2, b"total time =    20.50 ms\ntotal time = 3.00 ms\n")
        assert capfd.readouterr() == ("", "") and len(lines) == 4
        seconds = peers.printed_seconds(lines, 2.0)
        assert seconds == pytest.approx({"semantic": 1.5, "coarse": 0.0205, "fine": 0.003, "codec": 0.4765})
        with pytest.raises(ValueError, match="printed 2 times"):
            peers.printed_seconds(lines[:3], 2.0)
        os.write(1, b"back")
        assert capfd.readouterr().out == "back"

    def test_the_file_of_bark_cpp(self, tmp_path):
        import torch

        from benchmarks import peers

        checkpoints = peers.fixtures()[0]
        sizes, codec = dict.fromkeys(checkpoints.STAGES, (2, 2, 16)), {"n_filters": 4, "dimension": 16}
        vocabulary = checkpoints.write_vocabulary(tmp_path / "vocab.txt", 700)
        path = checkpoints.write_ggml(tmp_path / "x.ggml", sizes, vocabulary, eos_at=9, codec=codec)
        data, at = path.read_bytes(), 0

        def take(n):
            nonlocal at
            at += n
            return data[at - n : at]

        def integers(n):
            return struct.unpack(f"<{n}i", take(4 * n))

        def tensor():
            n_dims, length, kind = integers(3)
            shape = integers(n_dims)[::-1]
            name = take(length).decode()
            dtype = (np.float32, np.float16)[kind]
            values = np.frombuffer(take(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype)
            return name, torch.from_numpy(values.reshape(shape).copy())

        assert integers(2) == (0x67676D6C, 700)
        words = [take(*integers(1)).decode() for _ in range(700)]
        assert "\n".join(words) + "\n" == vocabulary.read_text("utf-8")
        for stage, heads, bias in (("text", (1, 1), 0), ("coarse", (1, 1), 0), ("fine", (7, 8), 1)):
            assert integers(10) == (2, 2, 16, 1024, bias, *checkpoints.VOCABULARIES[stage], *heads, 1)
            state = checkpoints.gpt_state(stage, sizes[stage], **({"eos_at": 9} if stage == "text" else {}))
            found = dict(tensor() for _ in range(*integers(1)))
            assert set(found) == {checkpoints.ggml_name(name) for name in state} and len(found) == len(state)
            for name, wanted in state.items():
                ours = found[checkpoints.ggml_name(name)]
                assert ours.dtype == (torch.float16 if wanted.ndim == 2 and "wpe" not in name else torch.float32)
                if (stage, name) == ("text", "lm_head.weight"):
                    assert not ours[10_001:].any()
                    ours, wanted = ours[:10_001], wanted[:10_001]
                assert torch.equal(ours, wanted.to(ours.dtype))
        assert {"model/wte/0", "model/wpe", "model/ln_f/g", "model/h1/attn/c_attn/w"} < {
            checkpoints.ggml_name(name) for name in checkpoints.gpt_state("text", (2, 2, 16))
        }
        assert {"model/wte/7", "model/lm_head/6", "model/h0/ln_2/b", "model/h1/mlp/c_proj/w"} < set(found)

        assert integers(10) == (0x67676D6C, 1, 16, 4, 7, 3, 1024, 24, 24_000, 1)
        found = {}
        while at < len(data):
            found |= dict([tensor()])
        module = checkpoints.encodec_model(checkpoints.write_encodec(tmp_path, **codec), **codec)
        name = "decoder.model.3.convtr.convtr.weight"
        layer = module.decoder.model[3].convtr.convtr
        wanted = torch._weight_norm(layer.weight_v, layer.weight_g, 0).detach()
        torch.testing.assert_close(found[name].float(), wanted, rtol=1e-3, atol=1e-6)
        assert found["quantizer.vq.layers.31._codebook.embed"].dtype == torch.float32
        assert found["encoder.model.13.lstm.weight_hh_l1"].shape == (256, 64)
        assert not [name for name in found if name.endswith(("_g", "_v", "inited", "embed_avg"))]

    def test_bark_cpp_says_the_same(self, tmp_path):
        pytest.importorskip("bark_cpp")
        import bark_jax
        from bark_jax import Sampling
        from benchmarks import peers
        from convert import convert

        checkpoints, reference, _ = peers.fixtures()
        sizes, codec = dict.fromkeys(checkpoints.STAGES, (1, 2, 32)), {"n_filters": 4, "dimension": 16}
        vocabulary = reference.vocabulary(tmp_path)
        checkpoints.write_suno(tmp_path / "suno", sizes, eos_at=10, optimizer_state=False)
        checkpoints.write_encodec(tmp_path / "suno", **codec)
        convert(tmp_path / "suno", tmp_path / "native", tokenizer=vocabulary, log=lambda line: None)
        bark = bark_jax.load(tmp_path / "native", dtype="float32", device="cpu")
        ours = bark.generate(peers.TEXT, sampling=Sampling.greedy())
        for name, program in peers._bark_cpp(tmp_path, sizes, 10, vocabulary, codec, lambda line: None).items():
            seconds, audio = program.speak(peers.TEXT)
            assert len(audio) == 15 * 320 and set(seconds) == set(peers.STAGES), name
            if name == "cpp_f16":  # 8 bits draw other tokens
                assert np.corrcoef(ours, audio)[0, 1] > 0.98

    def test_stand_ins_do_what_is_timed(self, monkeypatch):
        import torch

        from benchmarks import peers

        for name in ("funcy", "scipy.special", "einops"):
            monkeypatch.setitem(sys.modules, name, None)  # what Python itself uses for "not there"
        assert peers.stand_ins() == ["funcy", "scipy.special", "einops"]
        import einops
        import funcy
        from scipy.special import softmax

        assert funcy.partial(max, 3)(5) == 5
        np.testing.assert_allclose(softmax(np.log([1.0, 3.0])), [0.25, 0.75])
        x = torch.arange(24).reshape(2, 3, 4)
        assert torch.equal(einops.rearrange(x, "b n d -> b d n"), x.transpose(1, 2))
        with pytest.raises(NotImplementedError):
            einops.rearrange(x, "b n d -> b (n d)")


class TestAlone:
    """`speed` and `quality`: ours alone."""

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        for name in ("torch", "transformers", "bark", "encodec", "optax"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"needs {name}")
        from benchmarks import speed

        return speed.random_model((1, 2, 16), tmp_path_factory.mktemp("random"), n_filters=4, dimension=16)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
    def test_a_step_reads_what_the_card_says(self, model, dtype):
        import jax

        import bark_jax
        from bark_jax import weights
        from benchmarks import speed

        bark = bark_jax.load(model, dtype=dtype, device="cpu")
        card = speed.work(bark.config, dtype, 4.0)
        network = bark._engine.network("semantic").module
        read = {name: part for name, part in weights.names(network).items() if name not in weights.LOOKED_UP}
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
        config, n = bark.config.semantic, card["semantic"].steps
        assert n == 200
        cache = 2 * 16 * (config.text_length + 1 + n / 2) * 4
        # What is held besides: norms, scales of int8, and rows of the head that stand for nothing.
        assert 0.75 * held < card["semantic"].bytes - cache <= held
        assert card["coarse"].steps == 600 and card["fine"].steps == card["codec"].steps == 0
        assert card["codec"].operations > 0

    def test_the_card_counts_windows(self, model):
        from bark_jax.config import BarkConfig
        from benchmarks import speed

        config = BarkConfig.load(model / "config.json")
        short, long = (speed.work(config, "float32", seconds) for seconds in (4.0, 14.0))
        assert long["fine"].operations == 2 * short["fine"].operations  # 300 frames: a window; 1,051: two
        prompt = 2 * 12 * 16**2 * 257 + 4 * 16 * 257**2 / 2
        assert short["coarse"].operations == prompt  # ten windows, all of which extend the first
        assert long["coarse"].operations > 20 * prompt
        assert speed.Work(10, 5.0, 100.0).floor(50.0, 20.0) == pytest.approx(10 * 5 / 50 + 100 / 20)

    def test_the_whole(self, model, capsys):
        from benchmarks import speed

        one = speed.timed(str(model), "float32", 2, 0.5, "cpu", 1)
        assert one["rows"] == 2 and one["audio_s"] == pytest.approx(2 * 37 / 75)
        assert one["times_real_time"] == pytest.approx(one["audio_s"] / one["seconds"]["total"])
        assert one["compiled_while_timing"] == 0 and one["resident_mb"] > 100
        arguments = ["--model", str(model), "--dtype", "float32", "--seconds", "0.5", "--rows", "2", "--repeat", "1"]
        assert speed.main([*arguments, "--parts", "card,throughput"]) == 0
        table, result = capsys.readouterr().out.rsplit("\n", 2)[0:2]
        found = json.loads(result)
        assert found["throughput"][0]["rows"] == 2 and found["card"]["float32"]["0.5"]["floor_s"] > 0
        assert "throughput" in table and "GFLOP besides" in table

    def test_logits_compared(self):
        from benchmarks import quality

        exact = np.array([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
        same = quality.compare(exact, exact + np.array([[5.0], [-1.0]]))  # a constant changes nothing
        assert same["error"] < 1e-12 and same["divergence"] < 1e-12 and same["same_likeliest"] == 1
        other = quality.compare(exact, exact[:, ::-1])
        p = np.exp(exact) / np.exp(exact).sum(-1, keepdims=True)
        assert other["divergence"] == pytest.approx(np.mean(np.sum(p * np.log(p / p[:, ::-1]), -1)))
        assert other["same_likeliest"] == 0 and other["error"] > 1

    def test_quality(self, model, capsys):
        from benchmarks import quality

        assert quality.main(["--model", str(model), "--texts", "3", "--seconds", "1"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["positions"]["text"] == 3 * 51  # and the end of speech
        for stage in ("text", "coarse", "fine"):
            finer, coarser = (result["quality"][dtype][stage] for dtype in ("bfloat16", "int8"))
            assert 0 < finer["error"] < coarser["error"] < 0.2
            assert finer["same_likeliest"] > 0.9


class TestTrain:
    @pytest.fixture(autouse=True)
    def _packages(self, monkeypatch):
        for name in ("torch", "transformers", "bark", "encodec", "optax", "grain"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"needs {name}")
        from benchmarks import train

        monkeypatch.setattr(train, "PEAK_SHAPES", ((64, 96, 96),))

    def test_the_command_times_both_sides(self, capsys, tmp_path):
        import torch

        from benchmarks import train

        threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
        out = tmp_path / "x.json"
        arguments = "--size 1,1,32 --rows 2 --length 320 --repeat 1 --device cpu".split()
        assert train.main([*arguments, "--out", str(out)]) == 0
        assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, tf32)
        text = capsys.readouterr().out
        result = json.loads(text.splitlines()[-1])
        assert json.loads(out.read_text()) == result
        assert set(result["ratios"]) == {"1x1x32_full_vs_torch", "1x1x32_lora_vs_torch"}
        for mode in ("full", "lora"):
            ours, theirs = (result["seconds"][side][mode] for side in ("ours", "torch"))
            assert result["ratios"][f"1x1x32_{mode}_vs_torch"] == pytest.approx(theirs / ours, rel=1e-3)
            assert result["tokens_per_s"]["ours"][mode] == pytest.approx(2 * 320 / ours, rel=1e-3)
            work = result["flops_per_step"]["ours"][mode]
            assert result["mfu"][mode] == pytest.approx(work / ours / result["peak"]["flops_per_s"], rel=1e-3)
            assert result["compile_seconds"][mode] > 0 and result["compiled_while_timing"][mode] == 0
            # Random weights: ours guesses among the 1,024 codes that may come, torch among all outputs.
            assert result["losses"][mode]["ours"] == pytest.approx([np.log(1024)] * 2, rel=0.01)
            assert result["losses"][mode]["torch"] == pytest.approx([np.log(12_096)] * 2, rel=0.01)
            assert 4 * result["trained"][mode] * 3 < result["peak_gb"][mode] * 1e9 < 1e8  # weights, and AdamW's two
        assert result["trained"]["lora"] == 16 * 32 * 32 < result["trained"]["full"]
        assert result["config"]["size"] == [1, 1, 32] and result["config"]["stage"] == "coarse"
        assert "full" in text and "TFLOP/s" in text

    @pytest.mark.parametrize("stage", ["text", "coarse", "fine"])
    def test_both_sides_get_the_same_weights_and_tokens(self, stage, monkeypatch):
        import jax
        import torch

        from bark_jax import config
        from benchmarks import train

        model = config.suno((1, 1, 32))
        one = train.batch(model, stage, 2, 320)
        before = train.prefix(model, stage)
        assert (one.targets[:, :before] == -1).all() and (one.targets[:, before:] >= 0).all()
        settings = train.settings(stage, "lora", 2, "float32", None, 0.0)
        arguments = settings, model, train.tensors(model, stage), jax.devices("cpu")[0]
        ours, theirs = train.Ours(*arguments), train.Torch(*arguments, "float32")
        # The same once torch's outputs that are no candidates are out of the way.
        loss = ours.step(one)
        seen: list[torch.Tensor] = []
        original = torch.nn.functional.cross_entropy
        inputs, targets = (torch.from_numpy(x).long() for x in (one.inputs, one.targets))
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(torch.nn.functional, "cross_entropy", lambda x, y, **_: seen.extend((x, y)))
            theirs._loss(inputs, targets, int(one.codebook[0]))
        logits, wanted = (x[targets.flatten() >= 0] for x in seen)
        low = (wanted - 10_000) // 1024 * 1024 + 10_000 if stage == "coarse" else torch.zeros_like(wanted)
        size = 10_001 if stage == "text" else 1024
        kept = torch.stack([row[i : i + size] for row, i in zip(logits, low.tolist(), strict=True)])
        assert loss == pytest.approx(float(original(kept, wanted - low)), rel=1e-4)
        trained = sum(p.numel() for p in theirs.trained)
        assert trained == ours.trainer.sizes[0] == 16 * 32 * 32

    def test_arithmetic(self):
        from bark_jax import config
        from benchmarks import train

        model = config.suno((2, 2, 32))
        tokens, blocks, attention = 3 * 512, 12 * 2 * 32**2, 12 * 2 * 32 * 512
        full = 6 * (blocks * tokens + 2048 * 32 * 3 * 256) + attention * tokens / 2
        assert train.flops(model, "coarse", 3, 512, None) == full
        whole = 6 * (blocks + 12_096 * 32) * tokens + attention * tokens / 2
        assert train.flops(model, "coarse", 3, 512, None, whole_head=True) == whole
        assert train.flops(model, "fine", 3, 512, None) == 6 * (blocks + 1024 * 32) * tokens + attention * tokens
        adapters = 2 * 4 * (4 + 2 + 5 + 5) * 32
        low = 4 * (blocks + 1024 * 32) * tokens + 6 * adapters * tokens + attention * tokens
        assert train.flops(model, "fine", 3, 512, 4) == low

        class Device:
            platform, device_kind = "gpu", ""

        for kind, rate in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L4", 121e12),
                           ("NVIDIA A100-SXM4-40GB", 312e12), ("Tesla T4", 65e12), ("NVIDIA L40S", None)):  # fmt: skip
            Device.device_kind = kind
            assert train.peak(Device, False)["flops_per_s"] == rate

    def test_the_command_refuses_what_it_cannot_do(self, capsys):
        from benchmarks import train

        for wrong in (["--stage", "codec"], ["--modes", "full,half"], ["--length", "0"], ["--rows", "0"]):
            with pytest.raises(SystemExit) as exit_:
                train.main(wrong)
            assert exit_.value.code == 2 and wrong[1] in capsys.readouterr().err
        assert train.main("--length 256 --size 1,1,32".split()) == 1
        assert "257 to 1024" in capsys.readouterr().err
        assert train.main("--stage fine --corpus --size 1,1,32".split()) == 1
        assert "corpus is for stage coarse" in capsys.readouterr().err


class TestCloning:
    def test_bars_are_means_over_the_speakers_and_the_worst_of_words(self):
        pytest.importorskip("pyarrow")
        pytest.importorskip("orbax.checkpoint")
        from benchmarks import cloning

        def speaker(margin, closed, words):
            ways = {"clip": {"similarity": 0.5, "wer": 0.3}, "other": {"similarity": 0.4, "wer": 0.3}}
            ways |= {"shuffled": {"similarity": 0.6, "wer": 0.9}}
            for length in (5, 20):
                ways[f"full-{length}"] = {"gap_closed": closed, "wer": words[length]}
                ways[f"lora-{length}"] = {"gap_closed": closed / 2, "wer": 2.0}
            return {
                "clip": {"margin": margin, "nearest": 1.0},
                "lora_share": 0.04,
                "full-5 minutes": 12.0,
                "ways": ways,
            }

        found = {"one": speaker(0.1, 0.4, {5: 0.30, 20: 0.25}), "two": speaker(0.3, 0.8, {5: 0.35, 20: 0.40})}
        flat = cloning.summary(found, [5, 20])
        assert flat == {
            "clip_margin": pytest.approx(0.2),
            "clip_nearest": 1.0,
            "lora_share": pytest.approx(0.04),
            "finetune_minutes": 12.0,
            "gap_closed_5min": pytest.approx(0.6),
            "gap_closed_20min": pytest.approx(0.6),
            "gap_closed_5min_lora": pytest.approx(0.3),
            "gap_closed_20min_lora": pytest.approx(0.3),
            "wer_delta": pytest.approx(0.1),
            "controls_fail": True,
        }
        for way, figure, value in (("other", "similarity", 0.51), ("shuffled", "wer", 0.3)):
            kept, found["two"]["ways"][way] = found["two"]["ways"][way], {"similarity": 0.4, "wer": 0.9, figure: value}
            assert not cloning.summary(found, [5, 20])["controls_fail"]
            found["two"]["ways"][way] = kept
