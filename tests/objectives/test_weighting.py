"""Loss weightings against the papers' formulas, in the units of what a model predicts."""

from types import SimpleNamespace

import pytest
import torch

from impasto.config import resolve
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.noise.histogram import bars, histogram
from impasto.noise.laws import noise_law
from impasto.noise.schedule import RectifiedFlow
from impasto.objectives.base import build_objective
from impasto.objectives.config import Denoise
from impasto.objectives.weighting import WEIGHTINGS, predicts_noise
from impasto.objectives.weighting import build as weighting
from impasto.training.train import dry_run

LAM = torch.linspace(-8, 8, 33)
SNR = LAM.double().exp()


class Preserving:
    """alpha^2 + sigma^2 = 1, by the log-SNR alone."""

    masked = False

    def alpha_sigma(self, lam):
        return torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()

    def add_noise(self, x, eps, lam):
        alpha, sigma = self.alpha_sigma(lam.view(-1, 1, 1, 1))
        return alpha * x + sigma * eps


def family(prediction):
    """What a weighting may know of SD 1.5 (eps) and of a v-prediction model."""
    schedule = Preserving()

    def target(x, eps, lam):
        alpha, sigma = (t.view(-1, 1, 1, 1) for t in schedule.alpha_sigma(lam))
        return eps + 0 * x if prediction == "eps" else alpha * eps - sigma * x

    return SimpleNamespace(schedule=schedule, target=target, predict=lambda z_t, lam, cond: torch.zeros_like(z_t))


@pytest.mark.parametrize(
    ("name", "prediction", "expected"),
    [
        ("min-snr", "eps", SNR.clamp(max=5) / SNR),
        ("min-snr", "v", SNR.clamp(max=5) / (SNR + 1)),
        ("soft-min-snr", "eps", 1 / (1 / SNR + 1 / 5) / SNR),
        ("debiased", "eps", SNR**-0.5),
        ("debiased", "v", SNR**0.5 / (SNR + 1)),
    ],
)
def test_the_papers_formulas(name, prediction, expected):
    weight = weighting(Denoise(weighting=name), family(prediction))
    assert weight is not None
    torch.testing.assert_close(weight(LAM).double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_same_error_of_the_picture_costs_the_same_in_eps_and_v(name):
    """One guess x^ for z_t, written as eps^ and as v^: the weighted losses agree."""
    config, alpha, sigma = Denoise(weighting=name), *Preserving().alpha_sigma(LAM)
    x, guess = torch.tensor(0.7), torch.tensor(0.2)
    of_eps = (alpha * (x - guess) / sigma) ** 2  # eps^ = (z - alpha x^) / sigma
    of_v = (alpha * alpha * (x - guess) / sigma + sigma * (x - guess)) ** 2  # v = alpha eps - sigma x
    one = weighting(config, family("eps"))(LAM) * of_eps
    two = weighting(config, family("v"))(LAM) * of_v
    torch.testing.assert_close(one, two, rtol=1e-4, atol=0)


def test_what_a_family_predicts():
    flow = SimpleNamespace(schedule=RectifiedFlow(), target=lambda x, eps, lam: eps - x)
    assert [predicts_noise(each) for each in (family("eps"), family("v"), flow)] == [True, False, False]


def test_the_loss_is_the_weighted_mean():
    fit = build_objective(Denoise(weighting="min-snr", gamma=2.0), family("eps"))
    lam, eps = torch.tensor([-1.0, 3.0]), torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    parts = fit(family("eps"), Batch(torch.zeros(2, 4, 2, 2), eps, {}), lam, [])
    weight = torch.tensor([1.0, 2 / 20.085537])
    assert parts["loss"].item() == pytest.approx((weight * (eps**2).flatten(1).mean(1)).mean().item(), rel=1e-5)
    assert parts["mse"].item() == pytest.approx((eps**2).mean().item(), rel=1e-5)


def test_a_rectified_flow_is_refused_and_names_are_checked(tiny_sd3, picture):
    flow = SimpleNamespace(schedule=RectifiedFlow())
    with pytest.raises(UserError, match="rectified flow, where the noise law says what counts"):
        weighting(Denoise(weighting="min-snr"), flow)
    assert weighting(Denoise(), flow) is None
    with pytest.raises(UserError, match="did you mean 'min-snr'"):
        weighting(Denoise(weighting="min_snr"), flow)
    with pytest.raises(UserError, match="rectified flow"):  # the plan says so too
        dry_run(resolve(base=str(tiny_sd3), image=[str(picture)], caption=["a cat in ink style"], weighting="min-snr"))


def test_a_weighting_multiplies_with_the_law():
    """N(-1, 2^2) times exp(-lam / 2) is N(-3, 2^2), up to a factor."""
    law = noise_law(resolve(noise_mean=-1.0, noise_std=2.0))
    both = histogram(law, lambda lam: WEIGHTINGS["debiased"][0](lam, 5.0))
    assert histogram(law)["log_snr"]["median"] == pytest.approx(-1, abs=0.06)
    assert both["log_snr"]["median"] == pytest.approx(-3, abs=0.15)
    assert sum(both["log_snr"]["shares"]) == pytest.approx(1, abs=2e-3)
    assert bars(both, what="what counts").startswith("what counts (median -")
