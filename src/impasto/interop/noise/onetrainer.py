"""OneTrainer. u in 1000 steps, each rounded up; higher values mean more noise:

LOGIT_NORMAL  logit(u) ~ N(noising_bias, (noising_weight + 1)^2);  UNIFORM  u ~ U(0, 1)
t = k u / (1 + (k-1) u), k = timestep_shift, or FLUX's by resolution with dynamic_timestep_shifting
"""

from typing import Any

from impasto.errors import UserError
from impasto.interop.noise import ImportContext, ToolSettings, logit_normal_parameters, require_uniform_time
from impasto.noise.laws import Law, Uniform

SOURCE = (
    "Nerogar/OneTrainer 23df3832, modules/modelSetup/mixin/ModelSetupNoiseMixin.py 72-255, "
    "modules/modelSetup/mixin/ModelSetupFlowMatchingMixin.py 14-43, modules/modelSetup/BaseFluxSetup.py 211-221, "
    "ModelSetupDiffusionLossMixin.py 210-342"
)
KEYS: dict[str, Any] = {
    "timestep_distribution": "UNIFORM",
    "noising_weight": 0.0,
    "noising_bias": 0.0,
    "timestep_shift": 1.0,
    "dynamic_timestep_shifting": False,
    "min_noising_strength": 0.0,
    "max_noising_strength": 1.0,
    "offset_noise_weight": 0.0,
    "generalized_offset_noise": False,
    "perturbation_noise_weight": 0.0,
    "loss_weight_fn": "CONSTANT",
    "loss_weight_strength": 5.0,
    "rescale_noise_scheduler_to_zero_terminal_snr": False,
}
DROPPED = {
    "base_model_name": "base",
    "path": "image",
    "resolution": "size",
    "learning_rate": "lr",
    "optimizer": "optimizer",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
}

SD15 = ("15", "15_inpainting", "20", "20_base", "20_inpainting", "20_depth", "21", "21_base")
MODELS = {
    "model_type": {
        **{f"stable_diffusion_{version}": "sd15" for version in SD15},
        **{f"stable_diffusion_xl_10_base{ending}": "sdxl" for ending in ("", "_inpainting")},
        **{f"stable_diffusion_{version}": "sd3" for version in ("3", "35")},
        **{f"flux_{version}": "flux" for version in ("dev_1", "fill_dev_1")},
    }
}


def read(given: ToolSettings, s: ImportContext) -> dict[str, Any]:
    given.refuse("min_noising_strength", "max_noising_strength", why="compresses u, which has no counterpart here")
    given.refuse("perturbation_noise_weight")
    if "timestep_distribution" not in given and given.number("noising_weight") != 0:  # TrainConfig, migration 3
        raise UserError(
            "noising_weight without timestep_distribution is an older OneTrainer's SIGMOID: no counterpart here"
        )
    offset = {"offset_noise": given.number("offset_noise_weight") or None}
    if s.flow or given.word("loss_weight_fn").upper() != "MIN_SNR_GAMMA":
        given.refuse("loss_weight_fn", why="weights the loss, which has no counterpart here")
        weighting = {}
    else:
        weighting = {"weighting": "min-snr", "gamma": given.number("loss_weight_strength")}
    shift = given.number("timestep_shift")
    if given.on("dynamic_timestep_shifting") and s.flow:
        if s.architecture == "sd3":
            s.notes.append("dynamic_timestep_shifting is left out: OneTrainer's SD3 training uses timestep_shift")
        else:
            shift = s.flux_shift
            s.notes.append(f"its shift is {shift:.4g} at {s.size} px; give --size for another resolution")
    how = given.word("timestep_distribution").upper()
    if how != "LOGIT_NORMAL":
        given.leave_out(s, f"{how} does not use it", "noising_weight", "noising_bias")
    if not s.flow:
        given.refuse("generalized_offset_noise", "rescale_noise_scheduler_to_zero_terminal_snr")
        if how != "UNIFORM" or shift != 1:
            raise UserError(f"{how} with shift {shift:g} has no counterpart here for a U-Net")
        return {"noise": "uniform"} | offset | weighting
    if how == "UNIFORM":
        return {"noise": "uniform", "noise_shift": shift if shift != 1 else None} | offset
    if how == "LOGIT_NORMAL":
        std = given.number("noising_weight") + 1
        return {
            "noise": "logit-normal",
            "noise_mean": given.number("noising_bias"),
            "noise_std": std,
            "noise_shift": shift,
        } | offset
    raise UserError(f"timestep_distribution = {how} has no counterpart here")


def write(law: Law, offset: float, s: ImportContext) -> dict[str, Any]:
    rest = {"timestep_shift": 1.0, "dynamic_timestep_shifting": False, "offset_noise_weight": offset}
    if not s.flow:
        require_uniform_time(law, "OneTrainer")
    if isinstance(law, Uniform):
        return {"timestep_distribution": "UNIFORM"} | rest | {"timestep_shift": law.shift}
    mean, std = logit_normal_parameters(law, "OneTrainer")
    return {"timestep_distribution": "LOGIT_NORMAL", "noising_bias": mean, "noising_weight": std - 1} | rest


def min_snr(gamma: float) -> dict[str, Any]:
    return {"loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": gamma}
