"""Checkpoints and clocks."""

import os
import signal

import torch

from impasto.pretrain.state import Clock, ema_update, load_state, save_state


def _parts(seed: int) -> dict:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 3))
    muon = torch.optim.Muon([model[0].weight], lr=0.01)
    adamw = torch.optim.AdamW([*model[1].parameters(), model[0].bias], lr=0.01)
    return {"model": model, "muon": muon, "adamw": adamw}


def _step(parts: dict, seed: int) -> None:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    parts["model"](x).pow(2).mean().backward()
    for name in ("muon", "adamw"):
        parts[name].step()
        parts[name].zero_grad()


def test_load_state_resumes_bit_identical(tmp_path):
    whole, first, second = _parts(0), _parts(0), _parts(7)
    for i in range(6):
        _step(whole, i)
    for i in range(3):
        _step(first, i)
    save_state(tmp_path, first, {"step": 3, "note": "x"})
    meta = load_state(tmp_path, second)
    assert meta is not None and meta["step"] == 3 and meta["note"] == "x"
    for i in range(3, 6):
        _step(second, i)
    for a, b in zip(whole["model"].parameters(), second["model"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_save_state_interrupted_keeps_previous(tmp_path):
    parts = _parts(0)
    save_state(tmp_path, parts, {"step": 1})
    kept = {name: p.clone() for name, p in parts["model"].state_dict().items()}
    _step(parts, 0)
    (tmp_path / "state-000000002.safetensors").write_bytes(b"torn")  # killed before the JSON was written
    other = _parts(3)
    meta = load_state(tmp_path, other)
    assert meta is not None and meta["step"] == 1
    assert all(torch.equal(value, kept[name]) for name, value in other["model"].state_dict().items())


def test_load_state_without_state_returns_none(tmp_path):
    assert load_state(tmp_path, _parts(0)) is None


def test_ema_update_is_lerp():
    ema, live = [torch.zeros(3)], [torch.ones(3)]
    ema_update(ema, live, 0.9)
    assert torch.allclose(ema[0], torch.full((3,), 0.1))


def test_clock_stops_on_sigterm_and_restores_handlers():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Clock(total_minutes=1.0) as clock:
        assert not clock.stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert clock.stop
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_clock_counts_previous_sessions():
    clock = Clock(total_minutes=1.0, spent=30.0)
    assert 0.5 <= clock.progress < 0.6 and not clock.stop
    assert Clock(total_minutes=1.0, spent=61.0).stop
