"""Style folders: saved so that plain diffusers reads them, loaded without a silent loss."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from impasto import load_style
from impasto.adapters.config import LoRA
from impasto.adapters.lora import add
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.styles import save, weights


@pytest.fixture(scope="module")
def style(tiny_sd3, tmp_path_factory):
    """A style with alpha other than the rank and B other than zero."""
    family = load(str(tiny_sd3), device="cpu")
    parameters = add(family, LoRA(rank=4, alpha=6.0, targets=("attention",)), 0)
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=shared))
    folder = tmp_path_factory.mktemp("style")
    save.save(family, folder)
    return folder


@pytest.fixture
def pipe(tiny_sd3):
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, **extra):
    shared = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "output_type": "latent", "max_sequence_length": 1, "generator": shared}
    return pipe("a cat", **call, **extra).images


def test_the_file_is_what_diffusers_writes(style):
    assert [file.name for file in style.iterdir()] == ["pytorch_lora_weights.safetensors"]
    with safe_open(style / weights.WEIGHTS, "pt") as file:
        assert '"transformer.lora_alpha": 6.0' in file.metadata()["lora_adapter_metadata"]
        assert len(list(file.keys())) == 30
        assert all(key.startswith("transformer.transformer_blocks.") for key in file.keys())  # noqa: SIM118


def test_the_same_style_is_the_same_file(style, tmp_path):
    """safetensors itself writes metadata in another order each time; what is here it reads as it reads its own."""
    tensors, metadata = weights.read_file(style / weights.WEIGHTS)
    metadata |= {f"key{i}": '"ä\n' for i in range(20)}
    hashes = set()
    for i in range(4):
        weights.write_tensors(
            tmp_path / f"{i}.safetensors", tensors, dict(reversed(metadata.items())) if i % 2 else metadata
        )
        hashes.add(weights.style_hash(tmp_path / f"{i}.safetensors"))
    save_file(tensors, tmp_path / "theirs.safetensors", metadata)
    ours, theirs = (weights.read_file(tmp_path / f"{name}.safetensors") for name in ("0", "theirs"))
    assert len(hashes) == 1 and ours[1] == theirs[1] == metadata
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in tensors) and ours[0].keys() == theirs[0].keys()
    data = (tmp_path / "0.safetensors").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0


def test_load_style_is_load_lora_weights(style, pipe, tiny_sd3):
    base = latents(pipe)
    plain = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    plain.load_lora_weights(style)
    assert load_style(pipe, style) == {}
    assert torch.equal(latents(pipe), latents(plain)) and not torch.equal(latents(pipe), base)


def test_strength_scales_and_zero_is_the_base(style, pipe):
    base = latents(pipe)
    load_style(pipe, style, 0.0)
    assert torch.allclose(latents(pipe), base, atol=1e-6)
    pipe.set_adapters("style0", 0.5)
    half = latents(pipe)
    pipe.unload_lora_weights()
    load_style(pipe, style, 0.5)
    assert torch.equal(latents(pipe), half) and not torch.allclose(half, base, atol=1e-3)


def test_styles_add_up(style, pipe):
    """The same style twice at .5 is that style at 1."""
    load_style(pipe, style, 0.5)
    load_style(pipe, style / weights.WEIGHTS, 0.5)
    twice = latents(pipe)
    pipe.set_adapters(["style0"], [1.0])
    assert torch.allclose(latents(pipe), twice, atol=1e-5)


def test_what_you_loaded_yourself_stays_on(style, pipe, tmp_path):
    """At its strength, and also where a style cannot be loaded; what was unloaded is forgotten."""
    load_style(pipe, style)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(style, adapter_name="mine")
    pipe.set_adapters("mine", 0.25)
    quarter = latents(pipe)
    with pytest.raises(UserError, match="missing"):
        key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
        load_style(pipe, changed(style, tmp_path, lambda tensors: tensors.pop(key)))
    assert torch.equal(latents(pipe), quarter)
    load_style(pipe, style, 0.75)
    assert sorted(pipe.get_active_adapters()) == ["mine", "style0"]
    both = latents(pipe)
    pipe.unload_lora_weights()
    load_style(pipe, style)
    assert torch.allclose(latents(pipe), both, atol=1e-5) and not torch.allclose(quarter, both, atol=1e-3)


def changed(style, folder, change):
    tensors = load_file(style / weights.WEIGHTS)
    with safe_open(style / weights.WEIGHTS, "pt") as file:
        metadata = file.metadata()
    del metadata["impasto.version"]  # as if another tool had written it: it states no hash of its own
    change(tensors)
    save_file(tensors, folder / weights.WEIGHTS, metadata)
    return folder


def test_a_missing_tensor_raises(style, pipe, tmp_path):
    key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    with pytest.raises(UserError, match=r"missing .*to_q\.lora_B"):
        load_style(pipe, changed(style, tmp_path, lambda tensors: tensors.pop(key)))
    assert not pipe.get_list_adapters()


def test_a_tensor_too_many_raises(style, pipe, tmp_path):
    def add_one(tensors):
        tensors["transformer.transformer_blocks.7.attn.to_q.lora_A.weight"] = torch.zeros(4, 16)

    with pytest.raises(UserError, match="not trained for this base"):
        load_style(pipe, changed(style, tmp_path, add_one))


def test_a_style_of_another_base_raises(style, pipe, tmp_path):
    def widen(tensors):
        for key in list(tensors):
            if "lora_A" in key:
                tensors[key] = torch.zeros(4, 24)

    with pytest.raises(UserError, match="15 of 30 tensors do not fit"):
        load_style(pipe, changed(style, tmp_path, widen))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_raises(style, pipe, tmp_path, value):
    """It would draw black; so would one number of thousands."""
    key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    with pytest.raises(UserError, match=rf"tensor '{key}' holds NaN or infinite values"):
        load_style(pipe, changed(style, tmp_path, lambda tensors: tensors[key][0, 0].fill_(value)))
    assert not pipe.get_list_adapters()


def test_a_file_that_says_it_is_of_another_model_raises(style, pipe, tmp_path):
    """Chroma's layers are called, and as wide, as FLUX's."""
    tensors, metadata = weights.read_file(style / weights.WEIGHTS)
    weights.write_tensors(tmp_path / weights.WEIGHTS, tensors, metadata | {"modelspec.architecture": "chroma/lora"})
    with pytest.raises(UserError, match=r"states 'chroma/lora' \(modelspec.architecture\), not a supported base"):
        load_style(pipe, tmp_path)
    assert not pipe.get_list_adapters()


def test_a_flat_tensor_raises(style, pipe, tmp_path):
    def flatten(tensors):
        tensors["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"] = torch.zeros(4)

    with pytest.raises(UserError, match="1 of 30 tensors do not fit"):
        load_style(pipe, changed(style, tmp_path, flatten))


def test_files_that_are_none(style, pipe, tmp_path):
    data = (style / weights.WEIGHTS).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_style(pipe, tmp_path / "half.safetensors")
    flipped = bytearray(data)
    flipped[-100] ^= 4
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    with pytest.raises(UserError, match="its tensors are not those that were saved"):
        load_style(pipe, tmp_path / "flipped.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    with pytest.raises(UserError, match="pickle under another name"):
        load_style(pipe, tmp_path / "pickle.safetensors")
    (tmp_path / "style.bin").write_bytes(data)
    with pytest.raises(UserError, match="not a safetensors file"):
        load_style(pipe, tmp_path / "style.bin")
    with pytest.raises(UserError, match="no such file"):
        load_style(pipe, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no pytorch_lora_weights"):
        load_style(pipe, tmp_path)
    (tmp_path / "state").mkdir()
    with pytest.raises(UserError, match="has not finished"):
        load_style(pipe, tmp_path)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UserError, match="empty"):
        load_style(pipe, tmp_path / "empty.safetensors")
