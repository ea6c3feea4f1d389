"""diffusers' training scripts. `timesteps[int(1000 u)]` falls, so u is REVERSED; SD3's scheduler includes its shift:

weighting_scheme  logit_normal  logit(u) ~ N(logit_mean, logit_std^2);  none  u ~ U(0, 1)
flux  t = 1 - u                          logit(t) ~ N(-logit_mean, logit_std^2)   (shifted in sampling only)
sd3   t = 3 (1-u) / (1 + 2 (1-u))        logit(t) ~ N(log 3 - logit_mean, logit_std^2)
      precondition_outputs (1 by default) compares x_0, which weights the loss by sigma^2; sigma_sqrt samples
      u ~ U(0, 1) and weights by 1 / sigma^2: with precondition_outputs the weights cancel
sd15, sdxl  uniform timesteps; noise_offset in the text-to-image scripts; offset_noise of train_dreambooth.py is .1
"""

import math
from typing import Any

from impasto.errors import UserError
from impasto.interop.noise import (
    ImportContext,
    ToolSettings,
    describe_sigma_weighting,
    logit_normal_parameters,
    no_counterpart_error,
    require_uniform_time,
)
from impasto.noise.laws import Law, Uniform, law_from_recipe

SOURCE = (
    "huggingface/diffusers 58eb52c0, examples/dreambooth/train_dreambooth_lora_flux.py 1766-1776, "
    "train_dreambooth_lora_sd3.py 1784-1843, train_dreambooth.py 1248, src/diffusers/training_utils.py 365-407, "
    "schedulers/scheduling_flow_match_euler_discrete.py 128-137"
)
KEYS: dict[str, Any] = {
    "weighting_scheme": "",
    "logit_mean": 0.0,
    "logit_std": 1.0,
    "mode_scale": 1.29,
    "precondition_outputs": 1,
    "noise_offset": 0.0,
    "input_perturbation": 0.0,
    "snr_gamma": 0.0,
    "timestep_bias_strategy": "none",
    "offset_noise": False,
    "do_edm_style_training": False,
}
DROPPED = {
    "pretrained_model_name_or_path": "base",
    "instance_data_dir": "image",
    "instance_prompt": "caption",
    "resolution": "size",
    "learning_rate": "lr",
    "optimizer": "optimizer",
    "rank": "rank",
    "lora_alpha": "alpha",
    "max_train_steps": "steps",
    "train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
}
MODELS: dict[str, dict[str, str]] = {}
DEFAULT = {"flux": "none", "sd3": "logit_normal"}
SHIFT = {"flux": 1.0, "sd3": 3.0}


def read(given: ToolSettings, s: ImportContext) -> dict[str, Any]:
    if not s.flow:
        given.refuse("input_perturbation", "timestep_bias_strategy", "do_edm_style_training")
        gamma = given.number("snr_gamma")
        weighting = {"weighting": "min-snr", "gamma": gamma} if gamma else {}
        offset = given.number("noise_offset")
        if given.on("offset_noise"):  # of another script
            given.refuse("noise_offset", why="with offset_noise: no script of diffusers has both, leave one out")
            offset = 0.1
        return {"noise": "uniform", "offset_noise": offset or None} | weighting
    assert s.architecture is not None
    unet = ("noise_offset", "offset_noise", "input_perturbation", "snr_gamma", "timestep_bias_strategy")
    given.leave_out(s, "diffusers' scripts for FLUX and SD3 have none", *unet)
    shift = SHIFT[s.architecture]
    scheme = given.word("weighting_scheme") or DEFAULT[s.architecture]
    if scheme != "logit_normal":
        given.leave_out(s, f"weighting_scheme {scheme} does not use it", "logit_mean", "logit_std")
    weighting_settings = s.architecture == "sd3" and given.number("precondition_outputs") != 0
    uniform = {"noise": "uniform", "noise_shift": shift if shift != 1 else None}
    if weighting_settings and scheme == "sigma_sqrt":
        return uniform
    if scheme == "logit_normal":
        mean, std = -given.number("logit_mean") + 0.0, given.number("logit_std")
        ours = {"noise": "logit-normal", "noise_mean": mean, "noise_std": std, "noise_shift": shift}
    elif scheme == "none":
        ours = uniform
    else:
        raise no_counterpart_error(scheme)
    if weighting_settings:
        s.notes.append(
            f"precondition_outputs = 1 {describe_sigma_weighting(law_from_recipe(ours))}; this is not carried over"
        )
    return ours


def write(law: Law, offset: float, s: ImportContext) -> dict[str, Any]:
    if not s.flow:
        require_uniform_time(law, "diffusers")
        return {"noise_offset": offset}
    assert s.architecture is not None
    shift = SHIFT[s.architecture]
    if offset:
        s.notes.append(f"offset_noise {offset:g} is not carried over: the scripts for FLUX and SD3 have none")
    if isinstance(law, Uniform):
        if law.shift != shift:
            raise UserError(f"diffusers' script for {s.architecture} has no counterpart of {law}")
        if s.architecture == "sd3":  # its script has no "none"
            return {"weighting_scheme": "sigma_sqrt", "precondition_outputs": 1}
        return {"weighting_scheme": "none"}
    mean, std = logit_normal_parameters(law, "diffusers")
    even = {"precondition_outputs": 0} if s.architecture == "sd3" else {}
    return {"weighting_scheme": "logit_normal", "logit_mean": math.log(shift) - mean + 0.0, "logit_std": std} | even


def min_snr(gamma: float) -> dict[str, Any]:
    return {"snr_gamma": gamma}
