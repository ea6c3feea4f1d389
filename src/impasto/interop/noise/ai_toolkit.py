"""ostris' ai-toolkit (process: train). 1000 timesteps are sampled and sorted in every step, one of them is used:

timestep_type  sigmoid (default)  logit(t) ~ N(0, 1);  linear  t ~ U(0, 1)
               shift, flux_shift, lumina2_shift  t ~ U, then the scheduler's shift: 3 for SD3, FLUX's by resolution
content_or_style  balanced uses a uniform index; style uses index (1 - u^3) 1000 of falling timesteps: LOW noise, the
                  opposite of the Style-Friendly SNR sampler; content u^3 1000: high noise
"""

import math
from typing import Any

from impasto.errors import UserError
from impasto.interop.noise import ImportContext, ToolSettings, logit_normal_parameters, require_uniform_time
from impasto.noise.laws import Law, LogitNormal, Uniform

SOURCE = (
    "ostris/ai-toolkit 27a03a91, toolkit/samplers/custom_flowmatch_sampler.py 103-200, "
    "jobs/process/BaseSDTrainProcess.py 1171-1322, toolkit/config_modules.py 378-559"
)
KEYS: dict[str, Any] = {
    "timestep_type": "sigmoid",
    "content_or_style": "balanced",
    "min_denoising_steps": 0,
    "max_denoising_steps": 999,
    "linear_timesteps": False,
    "linear_timesteps2": False,
    "noise_offset": 0.0,
    "dynamic_noise_offset": False,
    "noise_multiplier": 1.0,
    "random_noise_shift": 0.0,
    "random_noise_multiplier": 0.0,
    "do_signal_correction_noise": False,
    "do_batch_noise_correction": False,
    "blended_blur_noise": False,
    "loss_target": "noise",
    "snr_gamma": 0.0,
    "min_snr_gamma": 0.0,
    "force_consistent_noise": False,
    "optimal_noise_pairing_samples": 1,
    "target_noise_multiplier": 1.0,
    "num_train_timesteps": 1000,
}
DROPPED = {
    "name_or_path": "base",
    "folder_path": "image",
    "resolution": "size",
    "lr": "lr",
    "optimizer": "optimizer",
    "linear": "rank",
    "linear_alpha": "alpha",
    "steps": "steps",
    "batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
}

MODELS = {
    "arch": {
        **dict.fromkeys(("sd1", "sd2"), "sd15"),
        **dict.fromkeys(("sdxl", "ssd", "vega"), "sdxl"),
        "sd3": "sd3",
        "flux": "flux",
        "flex1": "flux",
    },
    **{key: {"true": "sdxl"} for key in ("is_xl", "is_ssd", "is_vega")},
    "is_v2": {"true": "sd15"},
    "is_v3": {"true": "sd3"},
    "is_flux": {"true": "flux"},
    **{key: {} for key in ("is_pixart", "is_pixart_sigma", "is_auraflow", "is_lumina2")},
}


def read(given: ToolSettings, s: ImportContext) -> dict[str, Any]:
    style = given.word("content_or_style")
    if style != "balanced":
        raise UserError(
            f"content_or_style = {style} samples the noise level by a cubic law, which has no counterpart here"
            + (
                " (and it is low noise: the Style-Friendly SNR sampler is --noise style-friendly)"
                if style == "style"
                else ""
            )
        )
    if given.number("max_denoising_steps") > 999:
        given["max_denoising_steps"] = 999  # as the tool does, whose examples say 1000
    given.refuse(
        "min_denoising_steps", "max_denoising_steps", why="truncates the timesteps, which has no counterpart here"
    )
    given.refuse("linear_timesteps", "linear_timesteps2", why="weights the loss, which has no counterpart here")
    given.refuse("do_signal_correction_noise", "do_batch_noise_correction", "blended_blur_noise", "loss_target")
    given.refuse("dynamic_noise_offset", "noise_multiplier", "random_noise_multiplier", "snr_gamma")
    given.refuse("force_consistent_noise", "optimal_noise_pairing_samples", "target_noise_multiplier")
    given.refuse("num_train_timesteps")
    shifts = given.number("noise_offset"), max(0.0, given.number("random_noise_shift"))  # no effect below 0
    offset = {"offset_noise": math.hypot(*shifts) or None}  # two normal shifts of a channel
    how = given.word("timestep_type")
    if not s.flow:
        if given.get("noise_scheduler") == "flowmatch":
            raise UserError("noise_scheduler = flowmatch trains a U-Net as a flow, which has no counterpart here")
        given.leave_out(s, "ai-toolkit does not use it with a U-Net", "timestep_type")
        gamma = given.number("min_snr_gamma")
        return {"noise": "uniform"} | offset | ({"weighting": "min-snr", "gamma": gamma} if gamma else {})
    given.refuse("min_snr_gamma", why="is not a weighting for rectified flows")
    if how == "sigmoid":
        return {"noise": "logit-normal", "noise_mean": 0.0, "noise_std": 1.0, "noise_shift": 1.0} | offset
    if how == "linear":
        return {"noise": "uniform"} | offset
    if how in ("shift", "flux_shift", "lumina2_shift"):
        shift = s.flux_shift if s.architecture == "flux" else 3.0
        if s.architecture == "flux":
            s.notes.append(f"its shift is {shift:.4g} at {s.size} px; give --size for another resolution")
        return {"noise": "uniform", "noise_shift": shift} | offset
    raise UserError(f"timestep_type = {how} has no counterpart here")


def write(law: Law, offset: float, s: ImportContext) -> dict[str, Any]:
    rest, own = {"noise_offset": offset} if offset else {}, None
    if not s.flow:
        require_uniform_time(law, "ai-toolkit")
        return {"content_or_style": "balanced"} | rest
    if isinstance(law, Uniform):
        if law.shift == 1:
            return {"timestep_type": "linear", "content_or_style": "balanced"} | rest
        own = s.flux_shift if s.architecture == "flux" else 3.0
        if abs(law.shift / own - 1) < 1e-3:
            return {"timestep_type": "shift", "content_or_style": "balanced"} | rest
    elif logit_normal_parameters(law, "ai-toolkit") == logit_normal_parameters(LogitNormal(), ""):
        return {"timestep_type": "sigmoid", "content_or_style": "balanced"} | rest
    hint = f"; its {s.architecture} shift is {own:.4g} at {s.size} px" if own else ""
    raise UserError(f"ai-toolkit has no settings for mean, standard deviation or shift: no counterpart of {law}{hint}")


def min_snr(gamma: float) -> dict[str, Any]:
    return {"min_snr_gamma": gamma}
