"""Settings files as other tools save them: switches that say which settings count, and files with defaults alone."""

import json
from pathlib import Path

import pytest

from impasto.errors import UserError
from impasto.interop.noise import import_settings

REPORTED = Path(__file__).parents[1] / "data" / "reported" / "settings"
UNIFORM = {"noise": "uniform"}
READ = {
    "kohya flux_gui.json": ("flux", UNIFORM | {"noise_shift": 3.0}, "weighting_scheme is left out: kohya_ss passes"),
    "kohya sdxl_gui.json": ("sdxl", UNIFORM | {"weighting": "min-snr", "gamma": 5.0}, "sdxl, as sdxl is True"),
    "kohya sdxl_multires.json": (
        "sdxl",
        UNIFORM | {"offset_noise": 0.0357},
        "multires_noise_iterations is left out: kohya_ss passes it on only with noise_offset_type Multires",
    ),
    "kohya maxts0.json": ("sdxl", UNIFORM, "max_timestep is left out: kohya_ss does not pass on a 0"),
    "kohya empty_strings.json": ("sdxl", UNIFORM, "sdxl, as sdxl is True"),
    "ai-toolkit defaults_only_flux.yaml": (
        "flux",
        {"noise": "logit-normal", "noise_mean": 0.0, "noise_std": 1.0, "noise_shift": 1.0},
        "has no noise settings: these are the defaults of ai-toolkit",
    ),
    "onetrainer defaults_only_onetrainer_sd15.json": (
        "sd15",
        UNIFORM,
        "has no noise settings: these are the defaults of onetrainer",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_import_settings_of_reported_file_gives_what_the_tool_does(case):
    tool, file = case.split()
    architecture, settings, note = READ[case]
    result = import_settings(tool, [str(REPORTED / file)], None)
    assert (result["architecture"], result["settings"]) == (architecture, settings)
    assert any(note in one for one in result["notes"])


def gui(tmp_path, **changes):
    """The GUI's FLUX file with other values."""
    file = tmp_path / "gui.json"
    file.write_text(json.dumps(json.loads((REPORTED / "flux_gui.json").read_text()) | changes))
    return [str(file)]


def test_import_settings_gui_takes_what_its_model_takes(tmp_path):
    sd3 = {"flux1_checkbox": False, "sd3_checkbox": True, "logit_mean": 0.5, "discrete_flow_shift": 7}
    result = import_settings("kohya", gui(tmp_path, **sd3), None)
    assert result["architecture"] == "sd3" and result["settings"]["noise_mean"] == 0.5
    assert "discrete_flow_shift is left out: kohya_ss passes it on only with flux" in result["notes"]
    multires = {"noise_offset_type": "Multires", "multires_noise_iterations": 6, "sdxl": True}
    with pytest.raises(UserError, match="multires_noise_iterations = 6 has no counterpart"):
        import_settings("kohya", gui(tmp_path, **multires), None)
    shift = gui(tmp_path, timestep_sampling="shift", additional_parameters="--sigmoid_scale 0.5")
    assert import_settings("kohya", shift, None)["settings"]["noise_std"] == 0.5
    none = import_settings("kohya", gui(tmp_path, flux1_checkbox=False), None)
    assert none["architecture"] == "sd15"  # against the name of its base, flux1-dev


REFUSED = {
    "kohya flux lumina_checkbox=true": "lumina_checkbox = true states a model that impasto does not support",
    "kohya sd15 sdxl=true": "sdxl is true, which is sdxl, not sd15: leave out --architecture",
    "kohya - flux1_checkbox=true model_type=chroma": "model_type = chroma states a model",
    "onetrainer - model_type=CHROMA_1 base_model_name=flux1-dev": "model_type = CHROMA_1 states a model",
    "onetrainer flux model_type=FLUX_2 timestep_shift=3": "model_type = FLUX_2 states a model",
    "ai-toolkit - arch=qwen_image name_or_path=my/flux": "arch = qwen_image states a model",
    "ai-toolkit - is_lumina2=true name_or_path=my/flux": "is_lumina2 = true states a model",
    "ai-toolkit - is_xl=true timestep_type=sigmoid noise_scheduler=flowmatch": "trains a U-Net as a flow",
    "simpletuner - model_family=chroma flow_schedule_shift=3": "model_family = chroma states a model",
}


@pytest.mark.parametrize("command", REFUSED)
def test_import_settings_against_a_switch_raises(command):
    tool, architecture, *settings = command.split()
    with pytest.raises(UserError) as error:
        import_settings(tool, settings, None if architecture == "-" else architecture)
    assert REFUSED[command] in str(error.value)


def test_import_settings_reads_no_table_that_is_switched_off(tmp_path):
    file = tmp_path / "config.json"
    concepts = [{"enabled": True, "path": "in"}, {"enabled": False, "path": "out"}]
    optimizers = {"PRODIGY": {"optimizer": "PRODIGY"}}
    file.write_text(json.dumps({"model_type": "FLUX_DEV_1", "concepts": concepts, "optimizer_defaults": optimizers}))
    dropped = import_settings("onetrainer", [str(file)], None)["dropped"]
    assert [(one["key"], one["value"]) for one in dropped] == [("path", "in")]
