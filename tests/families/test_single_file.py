"""Single-file checkpoints: detection, conversion, errors; errors of folders and hub ids."""

import errno
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from impasto import families
from impasto.bases import cards, loader, single_file
from impasto.bases.single_file import CARD_NAMES, CONFIGS, convert, detect_architecture
from impasto.errors import UserError
from impasto.execution import memory
from impasto.families import files as families_files
from impasto.generation import generate
from impasto.sampling.sample import Sampling

sys.path.insert(0, str(Path(__file__).parent))
import originals

ARCHITECTURE = {"sd15": "sd15", "sdxl": "sdxl", "sd3": "sd35-large"}


class Original:
    """A tiny folder, the same weights as one file in the authors' layout, and configurations as in the package."""

    def __init__(self, name, tiny, root):
        self.name, self.folder = name, shutil.copytree(tiny, root / "tiny")
        if name == "sd3":  # such a file has no projection of CLIP-L: the identity is used
            weights = self.folder / "text_encoder" / "model.safetensors"
            state = load_file(weights)
            state["text_projection.weight"] = torch.eye(16)
            save_file(state, weights, {"format": "pt"})
        self.state = getattr(originals, name)(self.folder)
        self.file, self.configs = root / "model.safetensors", root / "configs"
        save_file(self.state, self.file)
        own = self.configs / ARCHITECTURE[name]
        for config in [*self.folder.glob("*/*config.json"), self.folder / "model_index.json"]:
            if "tokenizer" not in config.parent.name:
                target = own / config.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(config, target)
        self.tokenizers = root / "tokenizers"
        for tokenizer in self.folder.glob("tokenizer*"):
            shutil.copytree(tokenizer, self.tokenizers / tokenizer.name)


@pytest.fixture(scope="module", params=ARCHITECTURE)
def original(request, tmp_path_factory):
    tiny = request.getfixturevalue(f"tiny_{request.param}")
    return Original(request.param, tiny, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def sd15(tiny_sd15, tmp_path_factory):
    return Original("sd15", tiny_sd15, tmp_path_factory.mktemp("sd15"))


@pytest.fixture(scope="module")
def sdxl(tiny_sdxl, tmp_path_factory):
    return Original("sdxl", tiny_sdxl, tmp_path_factory.mktemp("sdxl"))


def test_convert_restores_folder(original):
    """Every tensor of every component is equal, tokenisers are links, and a second call uses the cache."""
    folder = convert(original.file, original.tokenizers, original.configs)
    for part in original.folder.glob("*/*.safetensors"):
        name = part.parent.name
        expected, found = load_file(part), load_file(next((folder / name).glob("*.safetensors")))
        assert expected.keys() == found.keys(), name
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    assert all(file.is_symlink() for file in (folder / "tokenizer").iterdir())
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert convert(original.file, original.tokenizers, original.configs) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    assert json.loads((folder / "impasto.json").read_text())["name"] == CARD_NAMES[ARCHITECTURE[original.name]]


@pytest.mark.parametrize(("kind", "stored"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("mixed", "float32")])
def test_convert_keeps_16_bit_dtype(sd15, tmp_path, monkeypatch, kind, stored):
    """Also in the disk space check; a schedule in float32 beside the weights does not matter, a component does."""
    dtype = getattr(torch, "bfloat16" if kind == "mixed" else kind)
    halves = {key: v.to(dtype) if v.is_floating_point() else v for key, v in sd15.state.items()}
    if kind == "mixed":
        halves |= {key: sd15.state[key] for key in halves if key.startswith("first_stage_model.")}
    halves |= {"alphas_cumprod": torch.ones(1000), "model_ema.x": torch.ones(9)}
    save_file(halves, tmp_path / f"{kind}.safetensors")
    asked = []
    monkeypatch.setattr(single_file, "check_disk_space", lambda file, folder, need: asked.append(need))
    folder = convert(tmp_path / f"{kind}.safetensors", sd15.tokenizers, sd15.configs)
    written = 0
    for part in sd15.folder.glob("*/*.safetensors"):
        expected, found = load_file(part), load_file(next((folder / part.parent.name).glob("*.safetensors")))
        wide = kind == "mixed" and part.parent.name == "vae"
        for key, tensor in expected.items():
            if tensor.is_floating_point():
                assert found[key].dtype == getattr(torch, stored), key
                assert torch.equal(found[key], (tensor if wide else tensor.to(dtype)).to(found[key].dtype)), key
        written += sum(v.numel() * v.element_size() for v in found.values())
    assert asked == [pytest.approx(written, rel=0.02)]


def test_convert_repairs_broken_links(sd15, tmp_path):
    """Links to moved tokenisers are replaced; another configuration makes another folder."""
    shutil.copy(sd15.file, tmp_path / "moved.safetensors")
    shutil.copytree(sd15.tokenizers, tmp_path / "old")
    folder = convert(tmp_path / "moved.safetensors", tmp_path / "old", sd15.configs)
    before = (folder / "model_index.json").stat().st_mtime_ns
    (tmp_path / "old").rename(tmp_path / "new")
    assert convert(tmp_path / "moved.safetensors", tmp_path / "new", sd15.configs) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    linked = list((folder / "tokenizer").iterdir())
    assert linked and all(file.is_file() and not file.name.startswith(".") for file in linked)
    configs = shutil.copytree(sd15.configs, tmp_path / "configs")
    scheduler = configs / "sd15" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"steps_offset": 7}))
    assert convert(tmp_path / "moved.safetensors", tmp_path / "new", configs) != folder


def test_convert_on_full_disk_raises_oserror(sd15, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(diffusers.AutoencoderKL, "save_pretrained", full)
    shutil.copy(sd15.file, tmp_path / "full.safetensors")
    with pytest.raises(OSError, match="No space left"):
        convert(tmp_path / "full.safetensors", sd15.tokenizers, sd15.configs)
    assert not list(single_file.cache_dir("bases").glob("*full*"))


def test_convert_concurrently_uses_first_result(sd15, tmp_path, monkeypatch):
    """Two processes convert the same file: the first result is used, no scratch folder remains."""
    write = single_file.write_folder

    def late(scratch, *args):
        write(scratch, *args)
        shutil.copytree(scratch, scratch.with_name(scratch.name[1:].rpartition(".")[0]))

    monkeypatch.setattr(single_file, "write_folder", late)
    shutil.copy(sd15.file, tmp_path / "twice.safetensors")
    folder = convert(tmp_path / "twice.safetensors", sd15.tokenizers, sd15.configs)
    assert (folder / "model_index.json").is_file()
    assert list(single_file.cache_dir("bases").glob("*twice*")) == [folder]


def test_convert_links_files_of_linked_folder(sd15, tmp_path):
    tokenizers = shutil.copytree(sd15.tokenizers, tmp_path / "tokenizers")
    (tokenizers / "tokenizer").rename(tmp_path / "apart")
    (tokenizers / "tokenizer").mkdir()
    (tokenizers / "tokenizer" / "more").symlink_to(tmp_path / "apart", target_is_directory=True)
    shutil.copy(sd15.file, tmp_path / "linked.safetensors")
    folder = convert(tmp_path / "linked.safetensors", tokenizers, sd15.configs)
    there = sorted(file.name for file in (folder / "tokenizer" / "more").iterdir())
    assert there == sorted(file.name for file in (tmp_path / "apart").iterdir()) and there


def test_convert_without_tokenizers_raises(original):
    with pytest.raises(UserError, match=r"does not hold tokenizer.*--components"):
        convert(original.file, None, original.configs)


def test_convert_sd3_without_t5_warns(tiny_sd3, tmp_path):
    """The error about text encoders mentions T5 as optional; T5 without its tokeniser raises."""
    sd3 = Original("sd3", tiny_sd3, tmp_path)
    rest = {key: v for key, v in sd3.state.items() if not key.startswith("text_encoders.")}
    save_file(rest, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"hold text_encoder, text_encoder_2, .*\(text_encoder_3 too: without, prompts"):
        convert(tmp_path / "bare.safetensors", sd3.tokenizers, sd3.configs)
    rest = {key: v for key, v in sd3.state.items() if "t5xxl" not in key}
    save_file(rest, tmp_path / "clips.safetensors")
    with pytest.warns(UserWarning, match=r"no text_encoder_3: prompts are encoded by the CLIPs alone \(77 tokens"):
        folder = convert(tmp_path / "clips.safetensors", sd3.tokenizers, sd3.configs)
    loader.load(str(folder), device="cpu", precision="fp32").encode_prompt(["a cat"])
    shutil.rmtree(sd3.tokenizers / "tokenizer_3")
    with pytest.raises(UserError, match="does not hold tokenizer_3, nor does"):
        convert(sd3.file, sd3.tokenizers, sd3.configs)


def test_generate_from_file_matches_folder(sd15, monkeypatch):
    monkeypatch.setattr(single_file, "CONFIGS", sd15.configs)
    call = {"seed": 3, "sampling": Sampling(steps=2, guidance=2.0, size=16)}
    ours, info = next(generate(str(sd15.file), ["a cat"], components=sd15.tokenizers, **call))
    theirs, _ = next(generate(str(sd15.folder), ["a cat"], **call))
    assert (np.asarray(ours) == np.asarray(theirs)).all()
    assert info["base"] == str(sd15.file)


def test_convert_unet_only_links_components(sd15, tmp_path):
    """A file with the U-Net alone, the rest from a diffusers folder."""
    alone = {key: v for key, v in sd15.state.items() if key.startswith("model.diffusion_model.")}
    save_file(alone, tmp_path / "unet.safetensors")
    folder = convert(tmp_path / "unet.safetensors", sd15.folder, sd15.configs)
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_symlink()
    DiffusionPipeline.from_pretrained(folder)
    shutil.copytree(sd15.folder, tmp_path / "more")
    (tmp_path / "more" / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that is not read")
    assert convert(tmp_path / "unet.safetensors", tmp_path / "more", sd15.configs) == folder
    with pytest.raises(UserError, match="does not hold text_encoder, vae, nor does"):
        convert(tmp_path / "unet.safetensors", sd15.tokenizers, sd15.configs)
    assert folder != convert(sd15.file, sd15.tokenizers, sd15.configs)
    half = shutil.copytree(sd15.folder, tmp_path / "half")
    weights = half / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    loader.load(str(convert(tmp_path / "unet.safetensors", half, sd15.configs)), device="cpu").pipeline()


def test_convert_with_v_pred_marker_predicts_v(sd15, tmp_path):
    marked = sd15.state | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    save_file(marked, tmp_path / "v.safetensors")
    folder = convert(tmp_path / "v.safetensors", sd15.tokenizers, sd15.configs)
    family = loader.load(str(folder), device="cpu")
    assert family.prediction == "v_prediction" and family.schedule.range[0] < -14


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
def test_sampling_with_zero_terminal_snr_starts_at_last_level(kind, request, tmp_path, monkeypatch):
    """Sampling starts at the schedule's last level; `load_config_only` agrees with the converted folder."""
    sdxl = request.getfixturevalue(kind)
    monkeypatch.setattr(single_file, "CONFIGS", sdxl.configs)
    plain, marks = {"v_pred": torch.zeros(1)}, {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    for name, marked, spacing in (("plain", plain, "leading"), ("zero", marks, "trailing")):
        file = tmp_path / f"{name}.safetensors"
        save_file(sdxl.state | marked, file)
        planned, made = (
            loader.load_config_only(str(file)),
            loader.load(str(file), device="cpu", components=sdxl.tokenizers),
        )
        assert planned.config("scheduler") == made.config("scheduler")
        assert made.config("scheduler").get("timestep_spacing", "leading") == spacing
        scheduler = DiffusionPipeline.from_pretrained(made.folder).scheduler
        assert type(scheduler).__name__ == planned.config("scheduler")["_class_name"]
        if name == "zero":
            scheduler.set_timesteps(4)
            assert scheduler.timesteps[0] == 999 and float(scheduler.alphas_cumprod[-1]) < 1e-6
        assert loader.schedule(str(file)).range == planned.schedule.range == made.schedule.range
        levels = made.sampling_levels(4, (4, 4))
        assert (levels[0].item() == pytest.approx(made.schedule.range[0], abs=1e-3)) == (name == "zero")
    assert made.schedule.range[0] < -14


def test_load_config_only_of_file_matches_folder(original, monkeypatch):
    """All that the planner uses, text encoders included, without tokenisers and without a conversion."""
    monkeypatch.setattr(single_file, "CONFIGS", original.configs)
    monkeypatch.setattr(single_file, "convert", lambda *args: pytest.fail("nothing shall be converted"))
    seen, whole = loader.load_config_only(str(original.file)), loader.load(str(original.folder), device="cpu")
    assert not list(seen.folder.rglob("*.safetensors")) and seen.card["license"] == "other"
    assert (seen.unit, seen.patch, seen.schedule.range) == (whole.unit, whole.patch, whole.schedule.range)
    for empty, parts in ((memory.meta_model(seen), [whole.denoiser]), (memory.meta_clips(seen), whole.clip_parts)):
        found = empty if isinstance(empty, list) else [empty]
        theirs = [getattr(whole.clip, part) if isinstance(part, str) else part for part in parts]
        assert [{k: v.shape for k, v in m.state_dict().items()} for m in found] == [
            {k: v.shape for k, v in m.state_dict().items()} for m in theirs
        ]
    with pytest.raises(UserError, match="is not a folder: name a diffusers folder"):
        loader.load_config_only(str(original.file), original.folder / "nowhere")


def test_load_config_only_reads_missing_configs_from_components(sd15, tmp_path, monkeypatch):
    monkeypatch.setattr(single_file, "CONFIGS", sd15.configs)
    alone = {key: v for key, v in sd15.state.items() if not key.startswith("cond_stage_model.")}
    save_file(alone, tmp_path / "unet.safetensors")
    components = shutil.copytree(sd15.folder, tmp_path / "components")
    for name in ("text_encoder/config.json", "vae/config.json"):
        config = json.loads((components / name).read_text()) | {"marked": True}
        (components / name).write_text(json.dumps(config))
    seen = loader.load_config_only(str(tmp_path / "unet.safetensors"), components)
    assert seen.config("text_encoder")["marked"] and "marked" not in seen.config("vae")


def test_load_config_only_of_flux_has_right_weight_count(tmp_path):
    """11,901,408,320 weights with the guidance embedding (dev), 10,229,760 less without (schnell)."""
    for name, more, weights in (("dev", GUIDED, 11_901_408_320), ("schnell", {}, 11_891_178_560)):
        small = {key: torch.zeros([min(side, 64) for side in shape]) for key, shape in (FLUX | more).items()}
        save_file(small, tmp_path / f"{name}.safetensors")
        seen = loader.load_config_only(str(tmp_path / f"{name}.safetensors"))
        assert seen.guided == (name == "dev") and seen.card["generate"]["steps"] == (28 if seen.guided else 4)
        assert sum(p.numel() for p in memory.meta_model(seen).parameters()) == weights
        assert seen.config("scheduler")["shift"] == (3.0 if seen.guided else 1.0)
        assert (seen.unit, seen.patch) == (16, 2)


@pytest.mark.parametrize("name", CARD_NAMES)
def test_load_config_only_with_shipped_configs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(single_file, "detect_architecture", lambda shapes, file: name)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    seen = loader.load_config_only(str(tmp_path / "x.safetensors"))
    assert (seen.unit // seen.patch, len(memory.meta_clips(seen))) == (8, len(seen.clip_parts))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.diffusion_model.input_blocks.1.0.in_layers.0.weight", "lacks tensors of a sd15"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            r"lacks 1 tensors of its text_encoder, 'final_layer_norm.bias'",
        ),
    ],
)
def test_convert_with_missing_tensor_raises(sd15, tmp_path, key, message):
    """Tensors that diffusers would leave empty silently; no partial conversion remains."""
    save_file({k: v for k, v in sd15.state.items() if k != key}, tmp_path / "holes.safetensors")
    with pytest.raises(UserError, match=message) as error:
        convert(tmp_path / "holes.safetensors", sd15.tokenizers, sd15.configs)
    assert "\n" not in str(error.value)
    assert not list(single_file.cache_dir("bases").glob("*holes*"))


def test_convert_without_disk_space_raises(sd15, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    monkeypatch.setenv("IMPASTO_CACHE", str(sd15.file.parent / "cache"))
    with pytest.raises(UserError, match=r"needs .* GB in .*free space"):
        convert(sd15.file, sd15.tokenizers, sd15.configs)


@pytest.mark.parametrize("guided", [True, False])
def test_flux_converter_matches_shipped_config(guided):
    """The authors' names and shapes, through diffusers' converter, match the model of the shipped configuration."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    names = originals.flux_names(guided)
    name = detect_architecture(names)
    assert name == ("flux-dev" if guided else "flux-schnell")
    assert detect_architecture({f"model.diffusion_model.{key}": shape for key, shape in names.items()}) == name
    found = convert_flux_transformer_checkpoint_to_diffusers(
        {key: torch.empty(shape, device="meta") for key, shape in names.items()}
    )
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(json.loads((CONFIGS / name / "transformer/config.json").read_text()))
    assert {key: v.shape for key, v in found.items()} == {key: v.shape for key, v in model.state_dict().items()}


JOINT = {"joint_blocks.0.context_block.attn.qkv.weight": (4, 4)}
DUAL = {"joint_blocks.0.x_block.attn2.qkv.weight": (4, 4), "joint_blocks.0.x_block.attn.ln_q.weight": (4,)}
UNET = {"input_blocks.0.0.weight": (320, 4, 3, 3), "out.2.weight": (4, 320, 3, 3)}
GUIDED = {"guidance_in.in_layer.weight": (3072, 256)}
FLUX = {
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "img_in.weight": (3072, 64),
    "final_layer.linear.weight": (64, 3072),
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (JOINT, "sd3-medium"),
        (JOINT | DUAL, "sd35-medium"),
        (JOINT | {"joint_blocks.0.x_block.attn.ln_q.weight": (4,)}, "sd35-large"),
        (UNET, "sd15"),
        (UNET | {"label_emb.0.0.weight": (1280, 2816)}, "sdxl"),
        (FLUX, "flux-schnell"),
        (FLUX | GUIDED, "flux-dev"),
    ],
)
def test_detect_architecture_by_tensor_names(names, expected):
    assert (
        detect_architecture(names)
        == detect_architecture({f"model.diffusion_model.{k}": v for k, v in names.items()})
        == expected
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (UNET | {"input_blocks.0.0.weight": (320, 9, 3, 3)}, "an inpainting model"),
        (UNET | {"cond_stage_model.model.token_embedding.weight": (4, 4)}, "SD2.x"),
        (
            UNET | {"label_emb.0.0.weight": (4, 4), "conditioner.embedders.0.model.text_projection": (4, 4)},
            "SDXL's refiner",
        ),
        (UNET | {"edm_mean": (4,)}, "EDM"),
        (FLUX | {"img_in.weight": (3072, 384)}, "with an image input"),
        (FLUX | {"distilled_guidance_layer.in_proj.bias": (4,)}, "Chroma"),
        (FLUX | {"double_blocks.0.img_attn.qkv.weight_scale": ()}, "scaled 8 bits"),
        ({"transformer.blocks.0.attn.to_q.lora_A.weight": (4, 4)}, "is a LoRA, not a base"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 4)}, "is a LoRA, not a base"),
        ({"wte.weight": (4, 4)}, "none of them"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_detect_architecture_unsupported_raises(names, message):
    with pytest.raises(UserError, match=message) as error:
        detect_architecture(names, "x.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CARD_NAMES)
def test_architectures_have_configs_and_card(name):
    index = json.loads((CONFIGS / name / "model_index.json").read_text())
    assert index["_class_name"] in families.FAMILIES and cards.card(CARD_NAMES[name])["size"] >= 512
    for part, value in index.items():
        if isinstance(value, list) and value[0] and not part.startswith("tokenizer"):
            assert list((CONFIGS / name / part).glob("*config.json")), part


def test_card_of_file_is_architectures(sd15):
    card = cards.card(str(sd15.file))
    assert card["size"] == 512 and card["pipeline"] == "StableDiffusionPipeline" and card["license"] == "other"


def test_load_invalid_file_raises(tmp_path, sd15):
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.ckpt")
    data = sd15.file.read_bytes()
    flipped = bytearray(data)
    flipped[20] ^= 0xFF  # in the header
    for name, content in {"half": data[: len(data) // 2], "flip": bytes(flipped), "text": b"hello"}.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or not a safetensors file") as error:
            cards.card(str(tmp_path / f"{name}.safetensors"))
        assert "\n" not in str(error.value)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="is GGUF, which is not read"):
        cards.card(str(tmp_path / "model.gguf"))
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        loader.load(str(tmp_path / "model.ckpt"))
    with pytest.raises(UserError, match="does not exist"):
        loader.load("models/nowhere.safetensors")
    with pytest.raises(UserError, match="is not a folder: name a diffusers folder"):
        loader.load(str(sd15.file), components=tmp_path / "nowhere")


def test_load_damaged_weights_raises(tiny_sd15, tmp_path):
    folder = shutil.copytree(tiny_sd15, tmp_path / "half")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    weights.write_bytes(bytes(flipped))  # detectable by the hash only
    assert families_files.folder_hash(folder) != families_files.folder_hash(tiny_sd15)
    flipped[12] ^= 0xFF
    for content in (data[: len(data) // 2], bytes(flipped)):
        weights.write_bytes(content)
        with pytest.raises(UserError, match=r"unet of the base .* cannot be loaded.*fetch it again") as error:
            _ = loader.load(str(folder), device="cpu").denoiser
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="cannot be loaded"):
            loader.load(str(folder), device="cpu").pipeline()
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="has pickled weights"):
        _ = loader.load(str(folder), device="cpu").denoiser


def hub_error(kind):
    return kind("refused", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, r"is gated: accept its licence at https://huggingface.co/owner/name.*`hf auth login`"),
        (RepositoryNotFoundError, "is not on the hub, or private"),
    ],
)
def test_load_refused_by_hub_raises(monkeypatch, kind, message, wrapped):
    def refuse(*args, **kwargs):
        if not wrapped:
            raise hub_error(kind)
        raise OSError("cannot load it:\nmany lines") from hub_error(kind)

    monkeypatch.setattr(DiffusionPipeline, "download", refuse)
    with pytest.raises(UserError, match=message) as error:
        loader.load("owner/name")
    assert "\n" not in str(error.value)


def write_hub_cache(root, base, folder):
    """Copy a folder to the hub's cache as after a download, with its listing, so that no network is needed."""
    repo, commit = root / f"models--{base.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, repo / "snapshots" / commit)
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    listing = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0" * 40} for name in names}}
    for file, text in (("refs/main", commit), (f"trees/{commit}.json", json.dumps(listing))):
        (repo / file).parent.mkdir()
        (repo / file).write_text(text)
    return repo / "snapshots" / commit


def test_locate_hub_id_downloads_variant(tiny_sdxl, tmp_path, monkeypatch):
    """diffusers' choice of files: the variant where plain weights are missing; pickles alone raise."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = shutil.copytree(tiny_sdxl, tmp_path / "folder")
    for name, suffix in (("plain", None), ("half", ".fp16.safetensors"), ("pickled", ".bin")):
        if suffix:
            weights = next((folder / "unet").glob("*.safetensors"))
            weights.rename(weights.with_name(f"diffusion_pytorch_model{suffix}"))
        there = write_hub_cache(tmp_path / "hub", f"owner/{name}", folder)
        if suffix != ".bin":
            assert loader.locate(f"owner/{name}") == there
            loader.load(f"owner/{name}", device="cpu").pipeline()
    with pytest.raises(UserError, match=r"'owner/pickled' has no safetensors weights") as error:
        loader.locate("owner/pickled")
    assert "\n" not in str(error.value)


def test_file_hash_of_large_file_is_cached(tmp_path, monkeypatch):
    monkeypatch.setattr("impasto.families.files.LARGE", 1)
    file, hashed = tmp_path / "x.safetensors", []
    file.write_bytes(b"one")
    monkeypatch.setattr("impasto.families.files.sha256", lambda path: hashed.append(path) or f"hash {len(hashed)}")
    assert families_files.file_hash(file) == families_files.file_hash(file) == "hash 1"
    file.write_bytes(b"other")
    assert families_files.file_hash(file) == "hash 2" and len(hashed) == 2
