"""The benchmarks run, agree with the reference, and record what their README says. Sizes are tiny, so are numbers."""

from __future__ import annotations

import getpass
import importlib.util
import json
import socket
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
    assert set(record) >= {"commit", "dirty", "date", "load_before"}
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

    def test_both_sides_do_the_same(self):
        import torch

        from benchmarks import peers

        threads, multinomial = torch.get_num_threads(), torch.multinomial
        try:
            result = peers.run(
                (1, 2, 16), seconds=0.2, repeat=1, codec={"n_filters": 4, "dimension": 16}, log=lambda line: None
            )
        finally:
            torch.set_num_threads(threads)
        assert torch.multinomial is multinomial
        assert result["tokens_equal"] is True
        assert list(result["cases"]) == ["none", "v2/en_speaker_6"]
        for case in result["cases"].values():
            assert case["semantic_tokens"] == 10 and case["audio_s"] == pytest.approx(15 / 75)
            assert case["audio_difference"] < 1e-4
            assert case["compiled_while_timing"] == 0
            assert set(case["ratios"]) == {*peers.STAGES, "total"}
        ours, suno = (result["seconds"][side]["total"] for side in ("ours", "suno"))
        assert result["ratios"]["total"] == pytest.approx(ours / suno, rel=1e-3)
        assert result["ratios"]["f32_b1_vs_suno"] == pytest.approx(suno / ours, rel=1e-3)
        assert result["compile_seconds"]["semantic"] > 0
        assert result["config"]["size"] == [1, 2, 16]
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        text = peers.report(result)
        assert text.count("tokens equal: yes") == 2 and all(stage in text for stage in peers.STAGES)

    def test_the_command_refuses_what_it_cannot_do(self, capsys):
        from benchmarks import peers

        for wrong in (["--size", "2,3,32"], ["--size", "tiny"], ["--stages", "text"], ["--seconds", "nan"],
                      ["--repeat", "0"]):  # fmt: skip
            with pytest.raises(SystemExit) as exit_:
                peers.main(wrong)
            assert exit_.value.code == 2 and wrong[1] in capsys.readouterr().err
        assert peers.main(["--voice", "v2/xx_speaker_6", "--size", "1,2,16"]) == 1
        assert "xx_speaker_6" in capsys.readouterr().err

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
