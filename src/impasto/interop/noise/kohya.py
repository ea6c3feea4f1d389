"""kohya's sd-scripts. logit_mean has different meanings in two scripts:

flux  timestep_sampling  sigma     u as below, t = k (1-u) / (1 + (k-1) (1-u)), k = discrete_flow_shift: u REVERSED
                         uniform   t ~ U(0, 1);  sigmoid  logit(t) ~ N(0, sigmoid_scale^2); neither with a shift
                         shift     logit(t) ~ N(log discrete_flow_shift, sigmoid_scale^2)
                         flux_shift  the same with FLUX's own shift by resolution
      weighting_scheme   logit_normal  logit(u) ~ N(logit_mean, logit_std^2), only with timestep_sampling = sigma
      model_prediction_type  raw compares the velocity, without weighting; sigma_scaled (the default) and additive
                         compare other quantities
sd3   t = k u / (1 + (k-1) u), k = training_shift; u as above, NOT reversed; always compares x_0, which weights the loss
      by sigma^2; weighting_scheme sigma_sqrt samples u ~ U(0, 1) and weights by 1 / sigma^2: the weights cancel. t is
      rounded down to a step of 1000, so that one draw in a thousand divides by sigma = 0; min_timestep 1 avoids that
sd15, sdxl  uniform timesteps; offset noise (not in the other two)

A file saved by kohya_ss, the GUI, holds the settings of all models; `select` takes those that it passes on.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from impasto.errors import UserError
from impasto.interop.noise import (
    ImportContext,
    ToolSettings,
    describe_sigma_weighting,
    logit_normal_parameters,
    no_counterpart_error,
    require_uniform_time,
    stated_architecture,
)
from impasto.interop.settings_file import command_line, flatten
from impasto.noise.laws import Law, Uniform, law_from_recipe

SOURCE = (
    "kohya-ss/sd-scripts 48d368fa, library/flux_train_utils.py 433-549, library/sd3_train_utils.py 877-945, "
    "sd3_train_network.py 358-367, library/train_util.py 6062-6110; "
    "the GUI bmaltais/kohya_ss 45088f04, kohya_gui/lora_gui.py 1780-1792 and 2147-2568"
)
KEYS: dict[str, Any] = {
    "timestep_sampling": "sigma",
    "discrete_flow_shift": 3.0,
    "sigmoid_scale": 1.0,
    "weighting_scheme": "uniform",
    "logit_mean": 0.0,
    "logit_std": 1.0,
    "mode_scale": 1.29,
    "model_prediction_type": "sigma_scaled",
    "training_shift": 1.0,
    "min_timestep": 0,
    "max_timestep": 1000,
    "noise_offset": 0.0,
    "noise_offset_random_strength": False,
    "adaptive_noise_scale": 0.0,
    "multires_noise_iterations": 0,
    "ip_noise_gamma": 0.0,
    "min_snr_gamma": 0.0,
    "debiased_estimation_loss": False,
    "v_pred_like_loss": 0.0,
    "scale_v_pred_loss_like_noise_pred": False,
    "zero_terminal_snr": False,
}
DROPPED = {
    "pretrained_model_name_or_path": "base",
    "train_data_dir": "image",
    "image_dir": "image",
    "resolution": "size",
    "max_resolution": "size",
    "learning_rate": "lr",
    "unet_lr": "lr",
    "optimizer_type": "optimizer",
    "optimizer": "optimizer",
    "network_dim": "rank",
    "network_alpha": "alpha",
    "max_train_steps": "steps",
    "train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
}
OTHER = (
    *("noise_offset_random_strength", "adaptive_noise_scale", "multires_noise_iterations", "debiased_estimation_loss"),
    *("v_pred_like_loss", "scale_v_pred_loss_like_noise_pred", "zero_terminal_snr"),
)
UNET = ("noise_offset", "min_snr_gamma", *OTHER)
FLUX = ("timestep_sampling", "discrete_flow_shift", "sigmoid_scale", "model_prediction_type")
SCHEME_KEYS = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale")
USED_BY_SAMPLING = {
    "sigma": ("discrete_flow_shift", *SCHEME_KEYS),
    "uniform": (),
    "sigmoid": ("sigmoid_scale",),
    "shift": ("discrete_flow_shift", "sigmoid_scale"),
    "flux_shift": ("sigmoid_scale",),
}
"""The settings used by each timestep_sampling of FLUX."""
RANGE_REASON = "compresses u into a part of its range, which has no counterpart here"

SWITCHES: dict[str, dict[str, str]] = {  # of the GUI, in the order in which it looks at them
    "sdxl": {"true": "sdxl"},
    "sdxl_checkbox": {"true": "sdxl"},
    "flux1_checkbox": {"true": "flux"},
    "sd3_checkbox": {"true": "sd3"},
    **{f"{name}_checkbox": {} for name in ("hunyuan_image", "anima", "lumina")},
}
MODELS = {"model_type": {"flux": "flux"}} | SWITCHES
ONLY_WITH = {  # settings that the GUI passes on in one case only
    "flux": ("timestep_sampling", "discrete_flow_shift", "model_prediction_type", "model_type"),
    "sd3": SCHEME_KEYS,
    "noise_offset_type Original": ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale"),
    "noise_offset_type Multires": ("multires_noise_iterations",),
    "another model": ("sigmoid_scale",),
}


def select(found: Mapping[str, list[Any]], s: ImportContext) -> dict[str, list[Any]]:
    """The settings that kohya_ss's GUI passes to sd-scripts, of a file that it saved; any other file as it is.

    A note names what is left out and differs from sd-scripts' default.
    """
    if not {*SWITCHES, "lora_type"} & found.keys():
        return dict(found)
    given = ToolSettings({key: values[-1] for key, values in found.items()}, KEYS | {"model_type": "flux"})
    if stated := stated_architecture(given, SWITCHES):
        s.state(*stated)
    else:
        s.state("sd15", "no switch of kohya_ss for another model is on")
    kind = f"noise_offset_type {given.get('noise_offset_type') or 'Original'}"
    empty = [key for key in given if key in KEYS and str(given[key]) in ("0", "0.0")]
    given.leave_out(s, "kohya_ss does not pass on a 0", *empty)
    dropped = {"noise_offset_type", *empty}
    for case, keys in ONLY_WITH.items():
        if case not in (s.architecture, kind):
            given.leave_out(s, f"kohya_ss passes it on only with {case}", *keys)
            dropped.update(keys)
    more = flatten(command_line(shlex.split(str(given.get("additional_parameters") or ""))))
    return {key: values for key, values in found.items() if key not in dropped} | more


def read(given: ToolSettings, s: ImportContext) -> dict[str, Any]:
    if s.architecture is None:
        for key, architecture in (("training_shift", "sd3"), ("timestep_sampling", "flux")):
            if key in given and s.architecture is None:
                s.assume(architecture, f"{key} is set")
    if not s.flow:
        given.refuse("min_timestep", "max_timestep", "ip_noise_gamma", *OTHER)
        given.leave_out(s, "sd-scripts does not use it with a U-Net", *FLUX, "training_shift", *SCHEME_KEYS)
        gamma = given.number("min_snr_gamma")
        weighting = {"weighting": "min-snr", "gamma": gamma} if gamma else {}
        return {"noise": "uniform", "offset_noise": given.number("noise_offset") or None} | weighting
    given.leave_out(s, "sd-scripts' FLUX and SD3 training does not use it", *UNET)
    scheme = given.word("weighting_scheme")
    if s.architecture == "sd3":
        least = given.number("min_timestep")
        if least != 1:  # 1 only excludes sigma = 0
            given.refuse("min_timestep", why=RANGE_REASON)
        given.refuse("max_timestep", why=RANGE_REASON)
        given.leave_out(s, "sd-scripts' SD3 training does not use it", *FLUX, "ip_noise_gamma")
        shift = given.number("training_shift")
        ours = read_scheme(given, s, shift, 1, ("sigma_sqrt",))
        if scheme == "sigma_sqrt" and not least:
            s.notes.append("sd-scripts' sigma_sqrt divides by 0 in one draw of a thousand: set min_timestep = 1 there")
        elif scheme != "sigma_sqrt":
            s.notes.append(
                f"sd-scripts' SD3 training {describe_sigma_weighting(law_from_recipe(ours))}; this is not carried over"
            )
        return ours
    given.refuse("ip_noise_gamma")
    given.leave_out(s, "sd-scripts' FLUX training does not use it", "min_timestep", "max_timestep", "training_shift")
    prediction = given.word("model_prediction_type")
    if prediction not in ("raw", "additive", "sigma_scaled"):
        raise UserError(f"model_prediction_type = {prediction} is not one of raw, additive, sigma_scaled")
    if prediction == "sigma_scaled" and scheme in ("sigma_sqrt", "cosmap"):  # weights the loss with any sampling
        raise no_counterpart_error(scheme)
    if prediction != "raw":
        s.notes.append(f"model_prediction_type {prediction} is not carried over: here the velocity is compared (raw)")
    how = given.word("timestep_sampling")
    if how not in USED_BY_SAMPLING:
        raise UserError(f"timestep_sampling = {how} is not one of {', '.join(USED_BY_SAMPLING)}")
    unused = [key for key in ("discrete_flow_shift", "sigmoid_scale", *SCHEME_KEYS) if key not in USED_BY_SAMPLING[how]]
    given.leave_out(s, f"timestep_sampling {how} does not use it", *unused)
    if how == "uniform":
        return {"noise": "uniform"}
    if how != "sigma":
        shift = 1.0
        if how == "shift":
            shift = given.number("discrete_flow_shift")
        elif how == "flux_shift":
            shift = s.flux_shift
            s.notes.append(f"flux_shift is {shift:.4g} at {s.size} px; give --size for another resolution")
        scale = given.number("sigmoid_scale")
        return {"noise": "logit-normal", "noise_mean": 0.0, "noise_std": scale, "noise_shift": shift}
    even = ("sigma_sqrt", "cosmap") if prediction == "raw" else ()
    return read_scheme(given, s, given.number("discrete_flow_shift"), -1, even)


def read_scheme(given: ToolSettings, s: ImportContext, shift: float, sign: int, even: Sequence[str]) -> dict[str, Any]:
    """The law of `weighting_scheme` for u (sign 1) or 1 - u (-1), then the shift. even: schemes whose weights
    cancel."""
    scheme = given.word("weighting_scheme")
    if scheme == "logit_normal":
        mean, std = sign * given.number("logit_mean"), given.number("logit_std")
        return {"noise": "logit-normal", "noise_mean": mean + 0.0, "noise_std": std, "noise_shift": shift}
    given.leave_out(s, f"weighting_scheme {scheme} does not use it", "logit_mean", "logit_std")
    if scheme in ("uniform", "none", *even):
        return {"noise": "uniform", "noise_shift": shift if shift != 1 else None}
    raise no_counterpart_error(scheme)


def write(law: Law, offset: float, s: ImportContext) -> dict[str, Any]:
    if not s.flow:
        require_uniform_time(law, "kohya")
        return {"noise_offset": offset} if offset else {"min_timestep": 0, "max_timestep": 1000}
    if offset:
        s.notes.append(f"offset_noise {offset:g} is not carried over: sd-scripts' FLUX and SD3 training has none")
    raw = {"model_prediction_type": "raw"}
    if isinstance(law, Uniform):
        if s.architecture == "sd3":
            s.notes.append("min_timestep 1 avoids a division by sigma = 0 in sd-scripts' sigma_sqrt")
            return {"weighting_scheme": "sigma_sqrt", "training_shift": law.shift, "min_timestep": 1}
        return {"timestep_sampling": "sigma", "weighting_scheme": "uniform", "discrete_flow_shift": law.shift} | raw
    mean, std = logit_normal_parameters(law, "kohya")
    if s.architecture == "sd3":
        s.notes.append(f"sd-scripts' SD3 training {describe_sigma_weighting(law)}; no setting there changes that")
        return {"weighting_scheme": "logit_normal", "logit_mean": mean, "logit_std": std, "training_shift": 1.0}
    return {"timestep_sampling": "shift", "sigmoid_scale": std, "discrete_flow_shift": math.exp(mean)} | raw


def min_snr(gamma: float) -> dict[str, Any]:
    return {"min_snr_gamma": gamma}
