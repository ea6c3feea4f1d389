"""The pure parts of the speed benchmark: gaps, rates, ratios, flags, and what the runner makes good for the peer."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import runner
import train_speed as speed

STEADY = {"step_ends": [9.0, 10.0, 10.5, 10.7, 10.9, 11.1, 12.7], "step_ends_cpu": [4.0, 4.5, 4.7, 4.8, 4.9, 5.0, 5.8]}


def test_gaps_leave_the_first_steps_out():
    assert speed.gaps([0.0, 10.0, 11.0, 12.5, 14.5], warm_up=2) == [1.5, 2.0]
    with pytest.raises(ValueError, match="too few"):
        speed.gaps([0.0, 1.0, 2.0], warm_up=2)


def test_a_round_has_median_and_mean_by_both_clocks():
    row = speed.round_row(STEADY | {"memory_mb": 700.0}, warm_up=3)
    assert row["steps_per_s"] == pytest.approx(5) and row["mean_steps_per_s"] == pytest.approx(3 / 2.0)
    assert row["steps_per_cpu_s"] == pytest.approx(10) and row["mean_steps_per_cpu_s"] == pytest.approx(3 / 1.0)
    assert (row["first_step_s"], row["first_step_cpu_s"], row["memory_mb"]) == (9.0, 4.0, 700.0)
    assert "device_mb" not in row


def test_the_summary_takes_medians_and_compares_with_impasto():
    def row(rate: float, memory: float) -> dict:
        return {"steps_per_s": rate, "steps_per_cpu_s": 2 * rate, "mean_steps_per_cpu_s": rate, "memory_mb": memory,
                "first_step_cpu_s": 3.0}  # fmt: skip

    rounds = {"impasto": [row(4, 500), row(6, 500), row(90, 500)], "peer": [row(2, 1000)], "peer, lean": []}
    arms = speed.summary(rounds)
    assert list(arms) == ["impasto", "peer"] and arms["impasto"]["steps_per_s"] == 6 and "ratio" not in arms["impasto"]
    assert arms["peer"]["ratio"]["steps_per_s"] == 3 and arms["peer"]["ratio"]["memory_mb"] == 0.5
    text = speed.table(arms)
    assert "| peer | 2.00 | 4.00 | 2.00 | 3.0 | 1000 | 3.00x (mean 3.00x), memory 0.50x |" in text


def test_every_arm_trains_the_same(tmp_path):
    peer = tmp_path / "peer.py"
    peer.touch()
    base = tmp_path / "base"
    base.mkdir()
    (base / "impasto.json").write_text('{"name": "mini-sd3"}')
    o = speed.options(["--peer", str(peer), "--batch", "4", "--rank", "16", "--steps", "9", "--precision", "bf16"])
    commands = {arm: " ".join(speed.command(arm, o, tmp_path, base, "a cat")) for arm in speed.ARMS}
    assert commands["impasto"].startswith(f"impasto train --base {base} ")
    for words in ("--rank 16", "--steps 9", "--batch 4", "--size 128", "--precision bf16", "--accumulate 1"):
        assert words in commands["impasto"]
    for words in ("--rank 16", "--max_train_steps 9", "--train_batch_size 4", "--repeats 4", "--mixed_precision bf16"):
        assert words in commands["peer"]
    card = json.loads((tmp_path / "lean-base" / "impasto.json").read_text())
    assert card == {"name": "mini-sd3", "text_lengths": {"1": 1.0}}
    assert json.loads((base / "impasto.json").read_text()) == {"name": "mini-sd3"}
    assert "--cache_latents" not in commands["peer"] and commands["peer, lean"].endswith("--cache_latents")


def test_operators_are_read_from_torchvisions_own_files(tmp_path):
    (tmp_path / "_meta_registrations.py").write_text(
        '@register_meta("roi_align")\ndef f(): ...\n@torch.library.register_fake("torchvision::nms")\ndef g(): ...\n'
    )
    (tmp_path / "_autograd_registrations.py").write_text("torch.ops.torchvision._roi_align_backward(1)\n")
    assert runner.operators(tmp_path) == ["_roi_align_backward", "nms", "roi_align"]


def test_a_failed_command_says_why(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit('no such flag')")
    with pytest.raises(RuntimeError, match="no such flag"):
        speed.execute([str(script)], tmp_path / "out.json", None, 1)
