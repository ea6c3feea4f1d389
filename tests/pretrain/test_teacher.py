"""Distillation from a packaged base: targets, and bases that cannot be teachers."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from impasto.bases import embedded as mini
from impasto.errors import UserError
from impasto.files import MODELS
from impasto.pretrain import run
from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.teacher import Teacher
from impasto.pretrain.unet import UNet

G = torch.Generator().manual_seed(0)
X0, EPS, OTHER = (torch.randn(3, 16, 16, 16, generator=G) for _ in range(3))
IDS = torch.zeros(3, 32, dtype=torch.int16)
T = torch.tensor([50, 500, 950])


@pytest.fixture
def make_teacher(monkeypatch):
    """A teacher of share w with the velocity `v`, and the arguments of its last call."""

    def make(share: float, v: torch.Tensor) -> tuple[Teacher, dict]:
        call: dict = {}

        def predict(self, model, x_t, t, cond):
            call.update(x_t=x_t, t=t)
            return v

        monkeypatch.setattr(MMDiT, "predict", predict)
        monkeypatch.setattr(MMDiT, "text", lambda self, tower, ids: {})
        return Teacher("mini-sd3", share, SimpleNamespace()), call

    return make


def test_teacher_with_true_prediction_keeps_targets(make_teacher):
    teacher, call = make_teacher(0.75, EPS - X0)
    alpha, sigma = UNet().signal(T)
    x0, eps = teacher(X0, EPS, alpha, sigma, IDS)
    assert torch.allclose(x0, X0, atol=1e-5) and torch.allclose(eps, EPS, atol=1e-5)
    assert torch.allclose(2 * torch.log((1 - call["t"]) / call["t"]), 2 * torch.log(alpha / sigma), atol=1e-4)
    mixed = (alpha[:, None, None, None] * X0 + sigma[:, None, None, None] * EPS) / (alpha + sigma)[:, None, None, None]
    assert torch.allclose(call["x_t"], mixed, atol=1e-5)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_teacher_targets_are_interpolated_by_share(make_teacher, share):
    teacher, call = make_teacher(share, OTHER)
    x0, eps = teacher(X0, EPS, *MMDiT().signal(torch.tensor([0.1, 0.5, 0.9])), IDS)
    t = call["t"][:, None, None, None]
    assert torch.allclose(x0, (1 - share) * X0 + share * (call["x_t"] - t * OTHER), atol=1e-5)
    assert torch.allclose(eps, (1 - share) * EPS + share * (call["x_t"] + (1 - t) * OTHER), atol=1e-5)
    assert torch.allclose(
        (1 - t) * (call["x_t"] - t * OTHER) + t * (call["x_t"] + (1 - t) * OTHER), call["x_t"], atol=1e-5
    )


def test_losses_use_teacher_targets_and_same_noisy_latent():
    inputs = []

    def model(hidden_states=None, timestep=None, return_dict=None, **_):
        inputs.append(hidden_states)
        return (torch.zeros_like(X0),)

    t = torch.tensor([0.2, 0.5, 0.8])
    plain, taught = MMDiT().loss(model, X0, EPS, t, {}), MMDiT().loss(model, X0, EPS, t, {}, (OTHER, 2 * EPS))
    assert torch.equal(*inputs) and plain == (EPS - X0).square().mean()
    assert taught == (2 * EPS - OTHER).square().mean()
    snr = torch.tensor([float((a / s) ** 2) for a, s in zip(*UNet().signal(T), strict=True)])
    weights = torch.minimum(snr**-0.5, 5 / snr)
    own = (2 * EPS).square().mean((1, 2, 3)) * weights
    loss = UNet().loss(lambda x, t, **_: (torch.zeros_like(x),), X0, EPS, T, {}, (OTHER, 2 * EPS))
    assert float(loss) == pytest.approx(float(own.mean()), rel=1e-5)


def test_session_backward_calls_teacher(tmp_path, monkeypatch):
    session = run.Session("mini-sd15", tmp_path, "cpu", None, 2e-3, 0, "frozen")
    session.learn_from("mini-sd3", 0.5)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    calls = []
    original = session.teacher.__call__
    monkeypatch.setattr(session, "teacher", lambda *args: calls.append(args) or original(*args))
    loss = session.update(
        lambda *args: session.net.loss(session.model, *args), X0, IDS, torch.zeros(3), EPS, False, 0.9
    )
    assert torch.isfinite(loss) and len(calls) == 1
    assert any(not torch.equal(before[name], value) for name, value in session.model.state_dict().items())


def test_teacher_invalid_raises(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'mini-sd3'"):
        Teacher("mini-sd1", 0.5, None)
    with pytest.raises(UserError, match="above 0 and up to 1, not 0"):
        Teacher("mini-sd3", 0.0, None)
    along = run.Session("mini-sd15", tmp_path, "cpu", None, 2e-3, 0, "along")
    with pytest.raises(UserError, match="trained along"):
        along.learn_from("mini-sd3", 0.5)
    models = tmp_path / "models"
    shutil.copytree(MODELS / "clip", models / "clip")
    monkeypatch.setattr(mini, "MODELS", models)
    with pytest.raises(UserError, match="not in this package"):
        Teacher("mini-sd3", 0.5, None)
