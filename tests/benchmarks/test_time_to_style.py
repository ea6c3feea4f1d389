"""The pure parts of time to style: which steps have a snapshot, seconds, the verdict; and a state as a style file."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import time_to_style as bench


def curve(*points: tuple[int, float, float]) -> list[dict]:
    return [{"step": s, "seconds": t, "cpu_seconds": t / 2, "style_accuracy": a, "concept_top5": 0.5}
            for s, t, a in points]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "snapshots", "every", "at"),
    [(150, 10, 15, list(range(15, 151, 15))), (7, 3, 3, [3, 6, 7]), (5, 5, 1, [1, 2, 3, 4, 5]), (4, 1, 4, [4])],
)
def test_snapshots_are_evenly_spaced_and_hold_the_last_step(steps, snapshots, every, at):
    assert bench.schedule(steps, snapshots) == (every, at)


def test_more_snapshots_than_steps_are_refused():
    with pytest.raises(ValueError, match="5 snapshots of 4 steps"):
        bench.schedule(4, 5)


def test_seconds_count_from_the_start_of_the_first_step():
    ends = [20.0, 22.0, 24.0, 29.0]  # a start-up of 18 s, steps of 2 s, one of 5 s
    assert [bench.training_seconds(ends, k) for k in (1, 2, 3, 4)] == [2.0, 4.0, 6.0, 11.0]
    assert bench.training_seconds([20.0], 1) == 0.0


def test_the_verdict_compares_the_first_points_above_the_threshold():
    curves = {"impasto": curve((1, 5, 0.5), (2, 10, 0.91), (3, 15, 0.7)), "peer": curve((5, 30, 0.2), (9, 60, 1.0))}
    found = bench.verdict(curves, base=0.1)
    assert found["best"] == 1.0 and found["threshold"] == pytest.approx(0.9)
    assert (found["reached"]["impasto"]["step"], found["reached"]["peer"]["step"]) == (2, 9)
    assert found["ratio"] == {"seconds": 6.0, "cpu_seconds": 6.0}


def test_a_peer_that_never_arrives_gives_a_lower_bound():
    curves = {"impasto": curve((1, 5, 0.8)), "peer": curve((5, 30, 0.2), (9, 60, 0.3))}
    found = bench.verdict(curves, base=0.1)
    assert found["ratio"] is None and found["at_least"]["seconds"] == 12.0


@pytest.mark.parametrize(("base", "ours", "why"), [(0.9, 0.9, "nothing can be concluded"), (0.0, 0.1, "did not get")])
def test_no_ratio_without_reason(base, ours, why):
    found = bench.verdict({"impasto": curve((1, 5, ours)), "peer": curve((5, 30, 0.9))}, base)
    assert found["ratio"] is None and "at_least" not in found and why in found["why"]
    result = {"style": "ph", "reference": "cat", "prompts": 4, "true": 1.0, "verdict": found}
    result |= {"start_cpu_seconds": {"impasto": 1, "peer": 2}, "curves": {"impasto": curve((1, 5, ours)), "peer": []}}
    result["curves"]["peer"] = curve((5, 30, 0.9))
    assert why in bench.table(result)


def test_a_state_becomes_the_style_that_the_run_itself_saved(tiny_sd3, picture, tmp_path):
    from impasto.config import resolve
    from impasto.training.train import train

    given = {"image": (picture,), "caption": ("a cat in neon style",), "out": tmp_path / "run", "preview": False}
    train(resolve("style-friendly", str(tiny_sd3), steps=2, batch=1, rank=2, tensorboard=False, **given))
    file = bench.style_of_state(tmp_path / "run" / "state" / "step-000002.safetensors", tmp_path / "s.safetensors")
    found, expected = load_file(file), load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert set(found) == set(expected) and all(found[name].equal(expected[name]) for name in expected)
