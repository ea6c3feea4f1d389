"""SimpleTuner. Higher values mean more noise:

    by default          logit(u) = flow_sigmoid_scale (z + timestep_sampling_offset), z ~ N(0, 1)
    flow_use_uniform_schedule  u ~ U(0, 1)
    t = k u / (1 + (k-1) u), k = flow_schedule_shift (3 by default), or FLUX's by resolution (auto_shift)

Offset noise is added to U-Nets only, in noise_offset_probability of the steps.
"""

import math
from typing import Any

from impasto.errors import UserError
from impasto.interop.noise import ImportContext, ToolSettings, logit_normal_parameters, require_uniform_time
from impasto.noise.laws import Law, Uniform

SOURCE = (
    "bghira/SimpleTuner bc8e6ab7, simpletuner/helpers/models/common.py 4994-5090 and 5938-5950, "
    "simpletuner/helpers/training/custom_schedule.py 443-478, default_settings/safety_check.py 154"
)
KEYS: dict[str, Any] = {
    "flow_schedule_shift": 3.0,
    "flow_schedule_auto_shift": False,
    "flow_sigmoid_scale": 1.0,
    "timestep_sampling_offset": 0.0,
    "flow_use_uniform_schedule": False,
    "flow_use_beta_schedule": False,
    "flow_custom_timesteps": "",
    "flow_cubic_schedule_weights": "",
    "flux_fast_schedule": False,
    "mixflow_enabled": False,
    "offset_noise": False,
    "noise_offset": 0.1,
    "noise_offset_probability": 0.25,
    "input_perturbation": 0.0,
    "timestep_bias_strategy": "none",
    "snr_gamma": 0.0,
    "prediction_type": "",
    "rescale_betas_zero_snr": False,
}
DROPPED = {
    "pretrained_model_name_or_path": "base",
    "instance_data_dir": "image",
    "resolution": "size",
    "learning_rate": "lr",
    "optimizer": "optimizer",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "max_train_steps": "steps",
    "train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
}
MODELS = {"model_family": {"flux": "flux", "sd3": "sd3", "sdxl": "sdxl", "sd1x": "sd15", "sd2x": "sd15"}}
FLOW = ("flow_schedule_shift", "flow_schedule_auto_shift", "flow_sigmoid_scale", "flow_use_uniform_schedule")
OTHER_LAWS = ("flow_use_beta_schedule", "flow_custom_timesteps", "flow_cubic_schedule_weights", "flux_fast_schedule")


def read(given: ToolSettings, s: ImportContext) -> dict[str, Any]:
    given.refuse(*OTHER_LAWS, "mixflow_enabled", "input_perturbation", "timestep_bias_strategy")
    if not s.flow:
        given.refuse("rescale_betas_zero_snr")
        if given.word("prediction_type") == "flow_matching":
            raise UserError("prediction_type = flow_matching trains a U-Net as a flow, which has no counterpart here")
        given.leave_out(s, "SimpleTuner does not use it with a U-Net", *FLOW, "timestep_sampling_offset")
        offset = None
        if given.on("offset_noise"):
            share = given.number("noise_offset_probability")
            if share != 1:
                raise UserError(
                    f"noise_offset_probability = {share:g} shifts the noise of some steps only: no counterpart here"
                )
            offset = given.number("noise_offset") or None
        gamma = given.number("snr_gamma")
        return {"noise": "uniform", "offset_noise": offset} | (
            {"weighting": "min-snr", "gamma": gamma} if gamma else {}
        )
    given.leave_out(s, "SimpleTuner does not use it with FLUX and SD3", "snr_gamma")
    if given.on("offset_noise"):
        s.notes.append("offset_noise is left out: SimpleTuner does not use it with FLUX and SD3")
    shift = given.number("flow_schedule_shift")
    if given.on("flow_schedule_auto_shift"):  # takes precedence over flow_schedule_shift
        shift = s.flux_shift
        s.notes.append(f"its shift is {shift:.4g} at {s.size} px; give --size for another resolution")
    shift = shift if shift > 0 else 1.0
    if given.on("flow_use_uniform_schedule"):
        unused = ("flow_sigmoid_scale", "timestep_sampling_offset")
        given.leave_out(s, "flow_use_uniform_schedule does not use it", *unused)
        return {"noise": "uniform", "noise_shift": shift if shift != 1 else None}
    scale = given.number("flow_sigmoid_scale")
    mean = scale * given.number("timestep_sampling_offset")
    return {"noise": "logit-normal", "noise_mean": mean, "noise_std": scale, "noise_shift": shift}


def write(law: Law, offset: float, s: ImportContext) -> dict[str, Any]:
    if not s.flow:
        require_uniform_time(law, "SimpleTuner")
        on = {"offset_noise": True, "noise_offset": offset, "noise_offset_probability": 1.0}
        return on if offset else {"timestep_bias_strategy": "none", "offset_noise": False}
    if offset:
        s.notes.append(f"offset_noise {offset:g} is not carried over: SimpleTuner has none for FLUX and SD3")
    if isinstance(law, Uniform):
        return {"flow_use_uniform_schedule": True, "flow_schedule_auto_shift": False, "flow_schedule_shift": law.shift}
    mean, std = logit_normal_parameters(law, "SimpleTuner")
    rest = {"flow_use_uniform_schedule": False, "flow_schedule_auto_shift": False}
    return {"flow_sigmoid_scale": std, "flow_schedule_shift": math.exp(mean)} | rest


def min_snr(gamma: float) -> dict[str, Any]:
    return {"snr_gamma": gamma}
