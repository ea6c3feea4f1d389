"""Other tools' settings: their own sampling, simulated from their formulas, against our law; round trips; refusals.

The simulations know nothing of impasto. Times are the share of noise, t = sigma; levels come in 1000 steps where the
tool's do, so a Kolmogorov-Smirnov distance may be off by what one step holds.
"""

import json
import math
import shlex
import sys
from importlib import import_module

import pytest
import torch

from impasto.cli import main as cli
from impasto.cli.settings import parse_config
from impasto.config import TrainConfig, kind_of, make_config, resolve
from impasto.errors import UserError
from impasto.interop.noise import (
    TOOLS,
    architecture_of,
    export_settings,
    format_import,
    import_settings,
    write_recipe,
)
from impasto.noise.laws import LogitNormal, StyleFriendly, Truncated, Uniform, law_from_recipe, noise_law

N = 20_000


def normal(seed=0):
    return torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(seed=0):
    return torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logit_normal(mean, std):
    """diffusers' compute_density_for_timestep_sampling: u = sigmoid(normal(logit_mean, logit_std))."""
    return torch.sigmoid(mean + std * normal())


def shifted(t, k):
    return k * t / (1 + (k - 1) * t)


def falling(u, k):
    """FlowMatchEulerDiscreteScheduler: sigmas = shifted(linspace(1000, 1) / 1000); sigmas[int(1000 u)]."""
    sigmas = shifted(torch.linspace(1000, 1, 1000, dtype=torch.float64) / 1000, k)
    return sigmas[(u * 1000).long()]


def flux_mu(size):
    """FLUX's get_lin_function / calculate_shift: (256, .5) and (4096, 1.15)."""
    return 0.5 + 0.65 * ((size // 16) ** 2 - 256) / 3840


def sorted_sigmoid(u):
    """ai-toolkit: 1000 values 1 - sigmoid(randn), sorted down, one taken by a uniform index; drawn anew 20 times."""
    rows = [torch.sort(1 - torch.sigmoid(normal(s)[:1000]), descending=True).values for s in range(20)]
    return torch.cat([row[(part * 1000).long()] for row, part in zip(rows, u.chunk(20), strict=True)])


def one_trainer(u, k):
    """int(shifted 1000 u), its sigma (that + 1) / 1000."""
    step = 1000 * u
    return ((1000 * k * step / ((k - 1) * step + 1000)).int() + 1).double() / 1000


CASES = {
    "kohya flux, logit_normal": (
        "kohya flux timestep_sampling=sigma weighting_scheme=logit_normal logit_mean=-1 logit_std=0.8 "
        "discrete_flow_shift=2",
        lambda: falling(logit_normal(-1, 0.8), 2.0),
    ),
    "kohya flux, its defaults": ("kohya flux timestep_sampling=sigma", lambda: falling(uniform(), 3.0)),
    "kohya flux, uniform": ("kohya flux timestep_sampling=uniform", uniform),
    "kohya flux, sigmoid": (
        "kohya flux timestep_sampling=sigmoid sigmoid_scale=1.3 discrete_flow_shift=9",
        lambda: torch.sigmoid(1.3 * normal()),
    ),
    "kohya flux, shift": (
        "kohya flux timestep_sampling=shift discrete_flow_shift=3.1582 sigmoid_scale=0.7",
        lambda: shifted(torch.sigmoid(0.7 * normal()), 3.1582),
    ),
    "kohya flux, flux_shift": (
        "kohya flux timestep_sampling=flux_shift",
        lambda: shifted(torch.sigmoid(normal()), math.exp(flux_mu(1024))),
    ),
    "kohya sd3, logit_normal": (
        "kohya sd3 weighting_scheme=logit_normal logit_mean=1 logit_std=0.8 training_shift=2",
        lambda: (shifted(logit_normal(1, 0.8), 2.0) * 1000).long() / 1000,
    ),
    "kohya sd3, uniform": ("kohya sd3 training_shift=3", lambda: (shifted(uniform(), 3.0) * 1000).long() / 1000),
    "ai-toolkit, sigmoid": ("ai-toolkit flux timestep_type=sigmoid", lambda: sorted_sigmoid(uniform())),
    "ai-toolkit, linear": (
        "ai-toolkit flux timestep_type=linear",
        lambda: (1000 - (uniform() * 999).long().double()) / 1000,
    ),
    "ai-toolkit, shift": ("ai-toolkit sd3 timestep_type=shift", lambda: falling(uniform(), 3.0)),
    "ai-toolkit, flux_shift": (
        "ai-toolkit flux timestep_type=flux_shift",
        lambda: falling(uniform(), math.exp(flux_mu(1024))),
    ),
    "onetrainer, logit normal": (
        "onetrainer flux timestep_distribution=LOGIT_NORMAL noising_bias=1.5 noising_weight=-0.2 timestep_shift=1.5",
        lambda: one_trainer(torch.sigmoid(1.5 + 0.8 * normal()), 1.5),
    ),
    "onetrainer, uniform": ("onetrainer sd3 timestep_shift=3", lambda: one_trainer(uniform(), 3.0)),
    "onetrainer, dynamic": (
        "onetrainer flux dynamic_timestep_shifting=true timestep_shift=9",
        lambda: one_trainer(uniform(), math.exp(flux_mu(1024))),
    ),
    "simpletuner, its defaults": (
        "simpletuner flux flow_sigmoid_scale=1.0",
        lambda: shifted(torch.sigmoid(normal()), 3.0),
    ),
    "simpletuner, scale and offset": (
        "simpletuner sd3 flow_sigmoid_scale=1.5 timestep_sampling_offset=0.5 flow_schedule_shift=2",
        lambda: shifted(torch.sigmoid(1.5 * (normal() + 0.5)), 2.0),
    ),
    "simpletuner, uniform, no shift": (
        "simpletuner flux flow_use_uniform_schedule=true flow_schedule_shift=0",
        uniform,
    ),
    "simpletuner, auto shift": (
        "simpletuner flux flow_schedule_auto_shift=true",
        lambda: shifted(torch.sigmoid(normal()), math.exp(flux_mu(1024))),
    ),
    "diffusers flux, logit_normal": (
        "diffusers flux weighting_scheme=logit_normal logit_mean=-3 logit_std=1",
        lambda: falling(logit_normal(-3, 1), 1.0),
    ),
    "diffusers flux, none": ("diffusers flux weighting_scheme=none", lambda: falling(uniform(), 1.0)),
    "diffusers sd3": ("diffusers sd3 logit_mean=-3", lambda: falling(logit_normal(-3, 1), 3.0)),
}


def imported(command):
    tool, architecture, *settings = command.split()
    return import_settings(tool, settings, architecture)


def distance(t, law):
    """Kolmogorov-Smirnov in t, and what the fullest of 1000 steps holds by our law."""
    edges = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:-1]
    ours = 1 - law.cdf(2 * torch.log((1 - edges) / edges))
    theirs = torch.searchsorted(t.sort().values, edges, right=True) / N
    return (ours - theirs).abs().max().item(), ours.diff().max().item()


@pytest.mark.parametrize("case", CASES)
def test_import_settings_matches_tool_distribution(case):
    command, simulate = CASES[case]
    ks, step = distance(simulate(), law_from_recipe(imported(command)["settings"]))
    assert ks < 1.628 / math.sqrt(N) + step and step < 0.05


@pytest.mark.parametrize("case", ["kohya flux, logit_normal", "kohya sd3, logit_normal", "diffusers sd3"])
def test_distance_detects_wrong_sign_or_shift(case):
    """logit_mean read the other way round, and the shift left out."""
    command, simulate = CASES[case]
    law = law_from_recipe(imported(command)["settings"])
    m, s = law.mean, law.std
    reversed_mean = LogitNormal(-m, s, law.shift)
    assert distance(simulate(), reversed_mean)[0] > 0.3 and distance(simulate(), LogitNormal(m, s))[0] > 0.1


def test_import_settings_exact_numbers():
    """E9: FLUX with logit_mean -3 is the style-friendly law; SD3.5 with it lies at -8.2, the shift counted twice."""
    assert law_from_recipe(
        imported("diffusers flux weighting_scheme=logit_normal logit_mean=-3")["settings"]
    ).log_snr == (-6, 2)
    assert law_from_recipe(
        imported("diffusers flux weighting_scheme=logit_normal logit_mean=3")["settings"]
    ).log_snr == (6, 2)
    mean, std = law_from_recipe(imported("diffusers sd3 logit_mean=-3")["settings"]).log_snr
    assert (mean, std) == pytest.approx((-8.19722, 2), abs=1e-5)
    exported = export_settings("diffusers", make_config(noise_mean=-6.0), "sd3")["settings"]
    assert exported["logit_mean"] == pytest.approx(-3 + math.log(3)) and exported["logit_std"] == 1
    shift = export_settings("kohya", make_config(noise_mean=-6.0), "flux")["settings"]
    assert shift["discrete_flow_shift"] == pytest.approx(20.0855, abs=1e-4)


LAWS = [
    {"noise": "style-friendly"},
    {"noise": "style-friendly", "noise_mean": -1.84, "noise_std": 3.0},
    {"noise": "sd3"},
    {"noise": "logit-normal", "noise_mean": -0.5, "noise_std": 0.6, "noise_shift": 0.4},
    {"noise": "logit-normal"},
    {"noise": "uniform"},
    {"noise": "uniform", "noise_shift": 3.0},
]
ONLY = {
    "ai-toolkit": "has no settings for mean, standard deviation or shift",
    "diffusers": "has no counterpart of Uniform",
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("architecture", ["flux", "sd3"])
def test_export_then_import_restores_law(tool, architecture):
    """Every law that a tool can have comes back the same; the others are refused."""
    lam, carried = torch.linspace(-15, 10, 60, dtype=torch.float64), 0
    for ours in LAWS:
        try:
            theirs = export_settings(tool, make_config(**ours), architecture)["settings"]
        except UserError as error:
            assert ONLY[tool] in str(error)
            continue
        carried += 1
        words = [f"{key}={value}" for key, value in theirs.items()]
        back = import_settings(tool, words, architecture)["settings"]
        assert torch.allclose(law_from_recipe(back).cdf(lam), law_from_recipe(ours).cdf(lam), atol=1e-7), (
            ours,
            theirs,
            back,
        )
    assert carried >= (2 if tool == "ai-toolkit" else 5)


def test_export_then_import_restores_offset_noise():
    config = make_config(noise="uniform", offset_noise=0.1)
    for tool in TOOLS:
        theirs = export_settings(tool, config, "sdxl")["settings"]
        words = [f"{key}={value}" for key, value in theirs.items()]
        assert import_settings(tool, words, "sdxl")["settings"] == {"noise": "uniform", "offset_noise": 0.1}
    for tool, kept in (("kohya", False), ("ai-toolkit", True), ("onetrainer", True), ("simpletuner", False)):
        result = export_settings(tool, config, "flux")
        assert (0.1 in result["settings"].values()) == kept
        assert kept or "offset_noise 0.1 is not carried over" in result["notes"][0]
    assert "noise_offset is left out" in imported("kohya flux timestep_sampling=uniform noise_offset=0.1")["notes"][0]
    assert imported("kohya sd15 noise_offset=0.05 min_snr_gamma=5")["settings"] == {
        "noise": "uniform", "offset_noise": 0.05, "weighting": "min-snr", "gamma": 5.0
    }  # fmt: skip


REFUSED = {
    "kohya flux timestep_sampling=sigma weighting_scheme=mode": "weighting_scheme = mode samples by another curve",
    "kohya flux timestep_sampling=sigma weighting_scheme=cosmap": "weights the loss of a rectified flow",
    "kohya flux timestep_sampling=zigzag": "is not one of sigma, uniform",
    "kohya sd3 weighting_scheme=uniform min_timestep=500": "min_timestep = 500 compresses u",
    "kohya sdxl noise_offset=0.1 adaptive_noise_scale=0.01": "adaptive_noise_scale = 0.01 has no counterpart",
    "kohya sdxl multires_noise_iterations=6": "multires_noise_iterations = 6 has no counterpart",
    "kohya flux timestep_sampling=shift sigmoid_scale=wide": "sigmoid_scale must be a number, not 'wide'",
    "kohya flux timestep_sampling=shift sigmoid_scale=nan": "sigmoid_scale must be a finite number",
    "kohya flux timestep_sampling=shift sigmoid_scale=0": "noise.std must be above 0",
    "ai-toolkit flux content_or_style=style": "it is low noise: the Style-Friendly SNR sampler is",
    "ai-toolkit flux content_or_style=content": "by a cubic law",
    "ai-toolkit flux timestep_type=weighted": "timestep_type = weighted has no counterpart",
    "ai-toolkit flux min_denoising_steps=500": "truncates the timesteps",
    "ai-toolkit flux max_denoising_steps=998": "max_denoising_steps = 998 truncates the timesteps",
    "ai-toolkit flux do_signal_correction_noise=true": "do_signal_correction_noise = true has no counterpart",
    "ai-toolkit flux do_batch_noise_correction=true": "do_batch_noise_correction = true has no counterpart",
    "ai-toolkit flux blended_blur_noise=true": "blended_blur_noise = true has no counterpart",
    "ai-toolkit flux loss_target=unaugmented": "loss_target = unaugmented has no counterpart",
    "kohya sdxl scale_v_pred_loss_like_noise_pred=true": "scale_v_pred_loss_like_noise_pred = true has no counterpart",
    "onetrainer sdxl loss_weight_fn=P2": "loss_weight_fn = P2 weights the loss",
    "onetrainer flux loss_weight_fn=SIGMA": "loss_weight_fn = SIGMA weights the loss",
    "onetrainer flux loss_weight_fn=MIN_SNR_GAMMA": "loss_weight_fn = MIN_SNR_GAMMA weights the loss",
    "onetrainer flux timestep_distribution=BETA": "timestep_distribution = BETA has no counterpart",
    "onetrainer flux min_noising_strength=0.5": "compresses u",
    "onetrainer sdxl timestep_distribution=LOGIT_NORMAL": "has no counterpart here for a U-Net",
    "simpletuner flux flow_use_beta_schedule=true": "flow_use_beta_schedule = true has no counterpart",
    "simpletuner sdxl offset_noise=true": "noise_offset_probability = 0.25 shifts the noise of some steps only",
    "diffusers flux weighting_scheme=sigma_sqrt": "weights the loss",
    "diffusers sdxl timestep_bias_strategy=later": "timestep_bias_strategy = later has no counterpart",
    "diffusers sd15 offset_noise=true noise_offset=0.05": "no script of diffusers has both",
    "diffusers sdxl do_edm_style_training=true": "do_edm_style_training = true has no counterpart",
    "simpletuner sdxl prediction_type=flow_matching": "trains a U-Net as a flow",
    "simpletuner sd15 rescale_betas_zero_snr=true": "rescale_betas_zero_snr = true has no counterpart",
    "onetrainer sdxl rescale_noise_scheduler_to_zero_terminal_snr=true": "has no counterpart",
    "onetrainer flux noising_weight=4": "is an older OneTrainer's SIGMOID",
    "kohya sdxl zero_terminal_snr=true": "zero_terminal_snr = true has no counterpart",
    "kohya flux timestep_sampling=shift weighting_scheme=sigma_sqrt": "sigma_sqrt weights the loss",
    "kohya flux timestep_sampling=shift model_prediction_type=bogus": "is not one of raw, additive, sigma_scaled",
    "kohya flux timestep_sampling=sigma ip_noise_gamma=0.1": "ip_noise_gamma = 0.1 has no counterpart",
    "kohya sd3 weighting_scheme=logit_normal logit_mean=-30": "of the noise levels lie above log-SNR 13.81",
    "kohya flux timestep_sampling=shift timestep_sampling=uniform": "timestep_sampling is set more than once",
    "ai-toolkit flux force_consistent_noise=true": "force_consistent_noise = true has no counterpart",
    "ai-toolkit flux optimal_noise_pairing_samples=4": "optimal_noise_pairing_samples = 4 has no counterpart",
    "ai-toolkit flux target_noise_multiplier=1.1": "target_noise_multiplier = 1.1 has no counterpart",
    "diffusers flux learning_rate=1e-4": "what was given has no noise settings of diffusers",
    "kohyaa flux noise_offset=1": "did you mean 'kohya'",
    "kohya flux timestep_sampling": "'timestep_sampling' does not exist",
    "kohya flux a=1 timestep_sampling": "'timestep_sampling' is not KEY=VALUE",
}


@pytest.mark.parametrize("command", REFUSED)
def test_import_settings_without_counterpart_raises(command):
    with pytest.raises(UserError) as error:
        imported(command)
    assert REFUSED[command] in str(error.value) and "\n" not in str(error.value)


def effective_median(t):
    """Of times that were drawn, counted sigma^2 each."""
    t = t.sort().values
    return t[((t**2).cumsum(0) < 0.5 * (t**2).sum()).sum()].item()


def test_import_settings_sigma_squared_weighting_is_noted():
    """SD3: diffusers by default and sd-scripts always compare x_0; only sigma_sqrt takes that back, exactly."""
    for command in ("diffusers sd3 logit_mean=0", "kohya sd3 weighting_scheme=logit_normal training_shift=3"):
        (note,) = imported(command)["notes"]
        median = effective_median(shifted(torch.sigmoid(normal()), 3.0))
        assert f"the median t is {median:.2f}, log-SNR -3.0, instead of 0.75, -2.2" in note
    even = {"noise": "uniform", "noise_shift": 3.0}
    kohya = "kohya sd3 weighting_scheme=sigma_sqrt training_shift=3"
    assert "divides by 0 in one draw of a thousand: set min_timestep = 1 there" in imported(kohya)["notes"][0]
    for command in ("diffusers sd3 weighting_scheme=sigma_sqrt", f"{kohya} min_timestep=1"):
        result = imported(command)
        assert result["settings"] == even and not result["notes"]
    assert not imported("diffusers sd3 logit_mean=0 precondition_outputs=0")["notes"]
    assert not imported("diffusers flux logit_mean=0")["notes"]
    with pytest.raises(UserError, match="sigma_sqrt weights the loss"):
        imported("diffusers sd3 weighting_scheme=sigma_sqrt precondition_outputs=0")
    exported = {tool: export_settings(tool, TrainConfig(), "sd3") for tool in ("diffusers", "kohya")}
    assert exported["diffusers"]["settings"]["precondition_outputs"] == 0 and not exported["diffusers"]["notes"]
    assert "sigma^2" in exported["kohya"]["notes"][0]
    for tool in ("diffusers", "kohya"):
        theirs = export_settings(tool, make_config(**even), "sd3")
        assert theirs["settings"]["weighting_scheme"] == "sigma_sqrt"
        assert [note.startswith("min_timestep 1 avoids") for note in theirs["notes"]] == [True] * (tool == "kohya")


def test_kohya_raw_velocity_is_exported():
    assert "model_prediction_type sigma_scaled is not" in imported("kohya flux timestep_sampling=uniform")["notes"][0]
    raw = "kohya flux timestep_sampling=sigma model_prediction_type=raw"
    assert not imported(raw)["notes"]
    assert imported(f"{raw} weighting_scheme=cosmap")["settings"] == imported(raw)["settings"]  # without a weighting
    for config in (TrainConfig(), make_config(noise="uniform")):
        assert export_settings("kohya", config, "flux")["settings"]["model_prediction_type"] == "raw"


def test_import_settings_weightings_and_bounds():
    assert imported("onetrainer sd15 loss_weight_fn=MIN_SNR_GAMMA loss_weight_strength=3")["settings"] == {
        "noise": "uniform", "weighting": "min-snr", "gamma": 3.0
    }  # fmt: skip
    assert imported("onetrainer flux loss_weight_fn=CONSTANT loss_weight_strength=3")["settings"] == {
        "noise": "uniform"
    }
    assert imported("ai-toolkit flux max_denoising_steps=1000")["settings"]["noise"] == "logit-normal"


def test_export_uniform_to_kohya_sd3_sets_min_timestep():
    """get_noisy_model_input_and_timesteps takes u (1000 - min_timestep) + min_timestep down to a whole number."""
    theirs = export_settings("kohya", make_config(noise="uniform"), "sd3")["settings"]
    steps = (uniform() * (1000 - theirs["min_timestep"]) + theirs["min_timestep"]).long()
    assert steps.min() >= 1 and (uniform() * 1000).long().min() == 0


def test_import_settings_offset_noise_combinations():
    assert imported("ai-toolkit flux noise_offset=0.3 random_noise_shift=0.4")["settings"]["offset_noise"] == 0.5
    assert "offset_noise" not in imported("ai-toolkit flux random_noise_shift=-0.5")["settings"]
    assert imported("diffusers sd15 offset_noise=true")["settings"] == {"noise": "uniform", "offset_noise": 0.1}


def test_export_settings_without_counterpart_raises():
    far, narrow = make_config(noise_mean=-40.0), make_config(noise_std=1e-300)
    for tool in TOOLS:
        with pytest.raises(UserError, match=r"lie below log-SNR -13\.81"):
            export_settings(tool, far, "flux")
        with pytest.raises(UserError, match="noise_std = 1e-300 is 0 for"):
            export_settings(tool, narrow, "flux")
    large = make_config(noise="uniform", noise_shift=3.0, size=100_000)
    with pytest.raises(UserError, match="size must be from 16 to 16384 pixels"):
        export_settings("ai-toolkit", large, "flux")
    truncated = make_config(noise="truncated-normal", noise_mean=-6.0, noise_low=-8.0)
    assert isinstance(noise_law(truncated), Truncated)
    for tool in TOOLS:
        for config, architecture in ((truncated, "flux"), (TrainConfig(), "sdxl")):
            with pytest.raises(UserError, match="counterpart of"):
                export_settings(tool, config, architecture)
    with pytest.raises(UserError, match="give --architecture flux, sd3, sdxl or sd15"):
        import_settings("diffusers", ["logit_mean=1"], None)


def test_export_then_import_restores_min_snr():
    """All of them have it for a U-Net; another weighting, and any on a rectified flow, is told of."""
    config = make_config(noise="uniform", weighting="min-snr", gamma=3.0)
    for tool in TOOLS:
        result = export_settings(tool, config, "sdxl")
        words = [f"{key}={value}" for key, value in result["settings"].items()]
        assert not result["notes"]
        back = import_settings(tool, words, "sdxl")["settings"]
        assert back == {"noise": "uniform", "weighting": "min-snr", "gamma": 3.0}, tool
        for changed, architecture, note in (
            (config, "flux", "weighting min-snr is left out: rectified flows are trained without weighting"),
            (make_config(noise="uniform", weighting="debiased"), "sdxl", "weighting debiased is not carried over"),
        ):
            assert note in export_settings(tool, changed, architecture)["notes"][-1]
    with pytest.raises(UserError, match="unknown weighting 'min-sn'"):
        export_settings("kohya", make_config(noise="uniform", weighting="min-sn"), "sdxl")


@pytest.mark.parametrize(
    ("command", "note"),
    [
        ("diffusers flux logit_mean=-3", "logit_mean is left out: weighting_scheme none does not use it"),
        ("diffusers sd3 weighting_scheme=sigma_sqrt logit_mean=1 logit_std=2", "logit_mean and logit_std are left out"),
        ("diffusers flux weighting_scheme=none noise_offset=0.1", "noise_offset is left out"),
        ("diffusers sd3 precondition_outputs=0 snr_gamma=5", "snr_gamma is left out"),
        ("kohya flux timestep_sampling=sigma model_prediction_type=raw logit_mean=-3", "logit_mean is left out"),
        ("kohya sd3 weighting_scheme=sigma_sqrt min_timestep=1 logit_std=2", "logit_std is left out"),
        ("kohya flux timestep_sampling=uniform model_prediction_type=raw min_timestep=200", "min_timestep is left out"),
        ("kohya flux timestep_sampling=uniform model_prediction_type=raw min_snr_gamma=5", "min_snr_gamma is left out"),
        ("simpletuner flux snr_gamma=5", "snr_gamma is left out"),
        (
            "simpletuner flux flow_use_uniform_schedule=true flow_sigmoid_scale=2",
            "flow_sigmoid_scale is left out: flow_use_uniform_schedule does not use it",
        ),
        ("simpletuner sdxl flow_schedule_shift=2", "SimpleTuner does not use it with a U-Net"),
        ("onetrainer flux timestep_distribution=UNIFORM noising_bias=1", "noising_bias is left out: UNIFORM does not"),
        ("ai-toolkit sdxl timestep_type=linear", "timestep_type is left out"),
        ("kohya sdxl weighting_scheme=logit_normal", "weighting_scheme is left out"),
        (
            "kohya flux timestep_sampling=uniform model_prediction_type=raw sigmoid_scale=2 weighting_scheme=mode",
            "sigmoid_scale and weighting_scheme are left out: timestep_sampling uniform does not use",
        ),
        (
            "kohya flux timestep_sampling=uniform model_prediction_type=raw multires_noise_iterations=6",
            "multires_noise_iterations is left out",
        ),
        ("kohya sd3 weighting_scheme=sigma_sqrt min_timestep=1 ip_noise_gamma=0.1", "ip_noise_gamma is left out"),
    ],
)
def test_import_settings_unused_setting_is_noted(command, note):
    (said,) = imported(command)["notes"]
    assert note in said


@pytest.mark.parametrize(
    ("base", "architecture"),
    [
        ("/home/flux/sdxl.safetensors", "sdxl"),
        ("C:\\flux\\sdxl.safetensors", "sdxl"),
        ("/models/xlarge/sd-v1-5.safetensors", "sd15"),
        ("/models/juggernautXL_v9.safetensors", "sdxl"),
        ("/models/FLUX.1-dev/", "flux"),
        ("sdxl/FLUX.1-dev", "flux"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("stabilityai/stable-diffusion-3.5-large", "sd3"),
        ("/home/flux/model.safetensors", None),
        ("/models/xlarge.safetensors", None),
        ("sdxl-with-flux-colours", None),
    ],
)
def test_detect_architecture_by_last_part_of_name(base, architecture):
    settings = ["noise_offset=0.1", f"pretrained_model_name_or_path={base}"]
    if architecture is None:
        with pytest.raises(UserError, match="give --architecture"):
            import_settings("diffusers", settings, None)
        return
    result = import_settings("diffusers", settings, None)
    assert result["architecture"] == architecture
    assert f"assumed {architecture}, as pretrained_model_name_or_path is {base}" in result["notes"][0]
    assert not any("assumed" in note for note in import_settings("diffusers", settings, "sd3")["notes"])


def test_detect_architecture_by_settings():
    """The name of the kind before that of a file; kohya's own settings; never FLUX.2 for FLUX.1."""
    words = ["snr_gamma=5", "model_type=lora", "model_family=sdxl", "pretrained_model_name_or_path=/x/flux"]
    assert import_settings("simpletuner", words, None)["architecture"] == "sdxl"
    for key, architecture in (("training_shift", "sd3"), ("timestep_sampling", "flux")):
        value = {"training_shift": "2", "timestep_sampling": "sigmoid"}[key]
        result = import_settings("kohya", [f"{key}={value}"], None)
        assert f"assumed {architecture}, as {key} is set" in result["notes"][0]
    for name in ("black-forest-labs/FLUX.2-dev", "/models/flux2-dev.safetensors", "FLUX_2"):
        with pytest.raises(UserError, match=r"is FLUX\.2, which impasto does not support"):
            import_settings("kohya", ["timestep_sampling=shift", f"pretrained_model_name_or_path={name}"], None)
    named = ["timestep_sampling=shift", "name_or_path=flux-2-mine"]
    assert import_settings("kohya", named, "flux")["architecture"] == "flux"


def test_architecture_of_base(tiny_flux, tiny_sd15, tmp_path):
    for base, architecture in (
        ("stabilityai/stable-diffusion-3.5-large", "sd3"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("black-forest-labs/FLUX.1-schnell", "flux"),
        ("mini-sd3", "sd3"),
        ("mini-sd15", "sd15"),
        (str(tiny_flux), "flux"),
        (str(tiny_sd15), "sd15"),
    ):
        assert architecture_of(base, None) == architecture_of(base, architecture) == architecture
        with pytest.raises(UserError, match=f"is {architecture}, not other: leave out --architecture"):
            architecture_of(base, "other")
    assert architecture_of(None, "flux") == architecture_of("some/one", "flux") == "flux"
    for base in (None, "some/one"):
        with pytest.raises(UserError, match="give --architecture flux, sd3, sdxl or sd15"):
            architecture_of(base, None)
    (tmp_path / "model_index.json").write_text('{"_class_name": "Flux2Pipeline"}')
    with pytest.raises(UserError, match="is a Flux2Pipeline, which impasto does not support"):
        architecture_of(str(tmp_path), "flux")


def test_import_settings_from_files(tmp_path):
    """TOML with tables, YAML with lists, JSON with dashes, a script; the base in it tells the architecture."""
    (tmp_path / "kohya.toml").write_text('[training]\ntimestep_sampling = "shift"\ndiscrete_flow_shift = 20.0855\n')
    (tmp_path / "ai.yaml").write_text(
        "config:\n  process:\n    - train:\n        timestep_type: sigmoid\n        noise_offset: 0.02\n"
        "      model:\n        name_or_path: black-forest-labs/FLUX.1-dev\n"
    )
    (tmp_path / "one.json").write_text(
        '{"model_type": "STABLE_DIFFUSION_35", "timestep_distribution": "LOGIT_NORMAL", "noising_bias": 3.0}'
    )
    (tmp_path / "simple.json").write_text(
        '{"--model_family": "flux", "--flow_schedule_shift": 20.0855, "--learning_rate": 1e-4}'
    )
    (tmp_path / "train.sh").write_text(
        "accelerate launch train.py \\\n  --pretrained_model_name_or_path=black-forest-labs/FLUX.1-dev \\\n"
        "  --weighting_scheme logit_normal --logit_mean=-3 \\\n  --push_to_hub # done\n"
    )
    for tool, name in (
        ("kohya", "kohya.toml"),
        ("onetrainer", "one.json"),
        ("simpletuner", "simple.json"),
        ("diffusers", "train.sh"),
    ):
        law = law_from_recipe(import_settings(tool, [str(tmp_path / name)], None)["settings"])
        assert law.log_snr == pytest.approx((-6, 2), abs=1e-4), name
    (tmp_path / "bom.txt").write_text("\ufeffweighting_scheme=logit_normal\nlogit_mean=-2\n", encoding="utf-8")
    (tmp_path / "bom.json").write_text('\ufeff{"weighting_scheme": "logit_normal", "logit_mean": -2}', encoding="utf-8")
    for name in ("bom.txt", "bom.json"):
        marked = import_settings("diffusers", [str(tmp_path / name)], "flux")["settings"]
        assert marked["noise"] == "logit-normal" and marked["noise_mean"] == 2.0
    (tmp_path / "sets.json").write_text('[{"timestep_sampling_offset": 2.0}, {"timestep_sampling_offset": -1.0}]')
    with pytest.raises(UserError, match=r"timestep_sampling_offset is set more than once, to 2\.0 and -1\.0"):
        import_settings("simpletuner", [str(tmp_path / "sets.json")], "flux")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        import_settings("kohya", [str(tmp_path / "deep.json")], "flux")
    ai = import_settings("ai-toolkit", [str(tmp_path / "ai.yaml")], None)["settings"]
    assert law_from_recipe(ai) == LogitNormal() and ai["offset_noise"] == 0.02
    for name, content in (
        ("none.json", '{"learning_rate": 1}'),
        ("empty.yaml", ""),
        ("plain.txt", "hello there"),
        ("number.json", "5"),
        ("number.yaml", "3"),
        ("true.json", "true"),
        ("list.yaml", "- 1"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}' has no noise settings of onetrainer; known: timestep_dist"):
            import_settings("onetrainer", [str(tmp_path / name)], "flux")
    for name, content in (("bad.json", "{"), ("bad.toml", "a ="), ("bad.yaml", "a: ["), ("bad.sh", "echo 'a")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name}' cannot be read"):
            import_settings("kohya", [str(tmp_path / name)], "flux")


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["impasto", "noise", *args])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_noise_import_and_export_commands(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "deep" / "recipe.toml"
    settings = ("kohya", "timestep_sampling=shift", "discrete_flow_shift=20.0855")
    code, out, _ = run(monkeypatch, capsys, "import", *settings, "--out", str(recipe))
    assert code == 0 and "--noise logit-normal --noise.mean 0 --noise.std 1 --noise.shift 20.0855" in out
    assert "log-SNR ~ N(-6, 2^2)" in out and "kohya-ss/sd-scripts" in out
    assert noise_law(resolve(str(recipe))).log_snr == pytest.approx((-6, 2), abs=1e-4)
    code, out, err = run(monkeypatch, capsys, "export", "diffusers", "--architecture", "sd3", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["settings"]["weighting_scheme"] == "logit_normal" and "logit_mean = -1.9" in err
    recipe = tmp_path / "shifted.toml"
    settings = ("timestep_type=shift", "--architecture", "flux", "--out", str(recipe))
    assert run(monkeypatch, capsys, "import", "ai-toolkit", *settings)[0] == 0
    shift = ("export", "ai-toolkit", "--recipe", str(recipe))
    code, out, _ = run(monkeypatch, capsys, *shift, "--architecture", "flux")
    assert code == 0 and 'timestep_type = "shift"' in out and "# flux: t ~ U(0, 1)" in out
    sd35 = "stabilityai/stable-diffusion-3.5-large"
    for flags, said in (
        (("--architecture", "flux", "--size", "128"), "its flux shift is 1.596 at 128 px"),
        (("--base", "mini-sd3"), "its sd3 shift is 3 at 128 px"),
        (("--base", "mini-sd3", "--architecture", "flux"), "base 'mini-sd3' is sd3, not flux"),
        ((), "give --architecture flux, sd3, sdxl or sd15"),
        (("--architecture", "flux", "--size", "0"), "size must be above 0"),
        (("--architecture", "flux", "--noise.offset", "5"), "noise.offset must be from 0 to 1"),
    ):
        code, _, err = run(monkeypatch, capsys, *shift, *flags)
        assert code == 2 and said in err and len(err.splitlines()) == 1
    own = tmp_path / "own.toml"
    own.write_text(f'base = "{sd35}"\n')
    for flags in (("--recipe", str(own)), ("--base", sd35)):
        code, out, _ = run(monkeypatch, capsys, "export", "diffusers", *flags)
        assert code == 0 and "logit_mean = -1.9" in out
    for settings in (("timestep_sampling=shift", "--size", "0"), ("noise_offset=2", "--architecture", "sdxl")):
        code, _, err = run(monkeypatch, capsys, "import", "kohya", *settings)
        assert code == 2 and "must be" in err and len(err.splitlines()) == 1
    code, _, err = run(monkeypatch, capsys, "import", "kohya", "learning_rate=1")
    assert code == 2 and err.startswith("impasto: error: ") and len(err.splitlines()) == 1
    code, _, err = run(monkeypatch, capsys, "shw")
    assert code == 2 and "did you mean 'show'" in err
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0 and "  import" in out and "  show" in out
    assert {type(law_from_recipe(law)) for law in LAWS} == {StyleFriendly, LogitNormal, Uniform}


def test_an_import_lists_what_it_drops_of_the_same_file(tmp_path, capsys):
    file = tmp_path / "kohya.toml"
    file.write_text(
        'timestep_sampling = "shift"\nmodel_prediction_type = "raw"\ntrain_data_dir = "/data/my pics"\n'
        'learning_rate = 0.0002\nnetwork_dim = 32\nresolution = "1024,1024"\noptimizer_type = "AdamW8bit"\n'
    )
    result = import_settings("kohya", [str(file)], "flux")
    flags = {one["key"]: one["flag"] for one in result["dropped"]}
    assert flags == {
        "train_data_dir": "--image '/data/my pics'",
        "learning_rate": "--lr 0.0002",
        "network_dim": "--adapter.rank 32",
        "resolution": "--size 1024",
        "optimizer_type": "--optimizer adamw8bit",
    }
    assert "not taken over: network_dim = 32: --adapter.rank 32" in format_import(result)
    parse_config([word for flag in flags.values() for word in shlex.split(flag)], "train")  # all are flags of ours
    file.write_text(file.read_text().replace("AdamW8bit", "Lion"))
    assert "optimizer_type = Lion: has no counterpart" in format_import(import_settings("kohya", [str(file)], "flux"))
    write_recipe(result, tmp_path / "own.toml")
    assert "# not taken over: learning_rate = 0.0002" in (tmp_path / "own.toml").read_text()


@pytest.mark.parametrize("tool", TOOLS)
def test_dropped_settings_name_our_flags(tool):
    for ours in import_module(TOOLS[tool]).DROPPED.values():
        assert kind_of(ours) is not None
