"""A packaged base that teaches another: what its targets are, and who can teach."""

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
def teach(monkeypatch):
    """A teacher of share w whose velocity is `v`, and that remembers what it was shown."""

    def make(share: float, v: torch.Tensor) -> tuple[Teacher, dict]:
        seen: dict = {}

        def predict(self, model, x_t, t, cond):
            seen.update(x_t=x_t, t=t)
            return v

        monkeypatch.setattr(MMDiT, "predict", predict)
        monkeypatch.setattr(MMDiT, "text", lambda self, tower, ids: {})
        return Teacher("mini-sd3", share, SimpleNamespace()), seen

    return make


def test_one_that_knows_the_truth_changes_nothing(teach):
    taught, seen = teach(0.75, EPS - X0)
    alpha, sigma = UNet().signal(T)
    x0, eps = taught(X0, EPS, alpha, sigma, IDS)
    assert torch.allclose(x0, X0, atol=1e-5) and torch.allclose(eps, EPS, atol=1e-5)
    assert torch.allclose(2 * torch.log((1 - seen["t"]) / seen["t"]), 2 * torch.log(alpha / sigma), atol=1e-4)
    mixed = (alpha[:, None, None, None] * X0 + sigma[:, None, None, None] * EPS) / (alpha + sigma)[:, None, None, None]
    assert torch.allclose(seen["x_t"], mixed, atol=1e-5)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_what_it_says_has_its_share(teach, share):
    taught, seen = teach(share, OTHER)
    x0, eps = taught(X0, EPS, *MMDiT().signal(torch.tensor([0.1, 0.5, 0.9])), IDS)
    t = seen["t"][:, None, None, None]
    assert torch.allclose(x0, (1 - share) * X0 + share * (seen["x_t"] - t * OTHER), atol=1e-5)
    assert torch.allclose(eps, (1 - share) * EPS + share * (seen["x_t"] + (1 - t) * OTHER), atol=1e-5)
    assert torch.allclose(
        (1 - t) * (seen["x_t"] - t * OTHER) + t * (seen["x_t"] + (1 - t) * OTHER), seen["x_t"], atol=1e-5
    )


def test_the_losses_take_its_targets_and_the_same_noisy_picture():
    shown = []

    def model(hidden_states=None, timestep=None, return_dict=None, **_):
        shown.append(hidden_states)
        return (torch.zeros_like(X0),)

    t = torch.tensor([0.2, 0.5, 0.8])
    plain, taught = MMDiT().loss(model, X0, EPS, t, {}), MMDiT().loss(model, X0, EPS, t, {}, (OTHER, 2 * EPS))
    assert torch.equal(*shown) and plain == (EPS - X0).square().mean()
    assert taught == (2 * EPS - OTHER).square().mean()
    snr = torch.tensor([float((a / s) ** 2) for a, s in zip(*UNet().signal(T), strict=True)])
    weights = torch.minimum(snr**-0.5, 5 / snr)
    own = (2 * EPS).square().mean((1, 2, 3)) * weights
    loss = UNet().loss(lambda x, t, **_: (torch.zeros_like(x),), X0, EPS, T, {}, (OTHER, 2 * EPS))
    assert float(loss) == pytest.approx(float(own.mean()), rel=1e-5)


def test_a_session_asks_its_teacher(tmp_path, monkeypatch):
    session = run.Session("mini-sd15", tmp_path, "cpu", None, 2e-3, 0, "frozen")
    session.learn_from("mini-sd3", 0.5)
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    asked = []
    real = session.teacher.__call__
    monkeypatch.setattr(session, "teacher", lambda *args: asked.append(args) or real(*args))
    loss = session.update(
        lambda *args: session.net.loss(session.model, *args), X0, IDS, torch.zeros(3), EPS, False, 0.9
    )
    assert torch.isfinite(loss) and len(asked) == 1
    assert any(not torch.equal(before[name], value) for name, value in session.model.state_dict().items())


def test_who_cannot_teach(tmp_path, monkeypatch):
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
