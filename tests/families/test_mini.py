"""The embedded bases as diffusers folders."""

import random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer

from impasto.artworld import load_meta, load_slice
from impasto.artworld.captions import BACKGROUNDS, caption
from impasto.bases import embedded as mini
from impasto.errors import UserError
from impasto.files import MODELS
from impasto.pretrain import autoencoder as ae
from impasto.pretrain.base import export_weights
from impasto.pretrain.clip import tokens
from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.unet import UNet


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion3Pipeline:
    pipe = StableDiffusion3Pipeline.from_pretrained(mini.ensure("mini-sd3"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_mini_sd3_plain_call_generates_image(pipe):
    image = pipe("a rocket, flat minimal vector sticker without outlines", num_inference_steps=6).images[0]
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 5  # not one flat colour


def test_mini_sd3_encodes_prompts_as_in_pretraining(pipe):
    texts = ["a rocket, flat colours", "a cactus, flat colours"]
    hidden, _, pooled, _ = pipe.encode_prompt(texts, None, None, max_sequence_length=1)
    assert float((pooled[0] - pooled[1]).abs().max()) > 0.05
    expected = MMDiT().text(mini.text_tower(MODELS / "clip"), tokens(pipe.tokenizer, texts))
    assert torch.allclose(hidden, expected["encoder_hidden_states"], atol=1e-5)
    assert torch.allclose(pooled, expected["pooled_projections"], atol=1e-5)
    t5 = pipe.encode_prompt(texts, None, None)[0][:, hidden.shape[1] - 1 :]
    assert t5.shape[1] == 256 and float(t5.abs().max()) == 0


def test_write_folder_of_unet_loads_in_diffusers(tmp_path):
    """The plain call works and encodes prompts as in pretraining."""
    net = UNet()
    torch.manual_seed(0)
    export_weights(net, net.new((32, 32, 32)), tmp_path / "mini-sd15")
    mini.write_folder(tmp_path / "folder", tmp_path / "mini-sd15", MODELS / "autoencoder", MODELS / "clip")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a rocket, flat colours", num_inference_steps=2).images[0].size == (128, 128)
    texts = ["a rocket, flat colours", "a cactus, flat colours"]
    found = pipe.encode_prompt(texts, "cpu", 1, False)[0]
    expected = net.text(mini.text_tower(MODELS / "clip"), tokens(pipe.tokenizer, texts))["encoder_hidden_states"]
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found[0], found[1])


def test_ensure_twice_reuses_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    folder = mini.ensure("mini-sd3")
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert mini.ensure("mini-sd3") == folder and (folder / "model_index.json").stat().st_mtime_ns == before
    assert folder.name.endswith(mini.weights_hash("mini-sd3")[:12])
    assert mini.card("mini-sd3")["weights_sha256"] == mini.weights_hash("mini-sd3")


def test_ensure_repairs_damaged_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    folder = mini.ensure("mini-sd15")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for damage in (lambda: weights.write_bytes(whole[:1000]), (folder / "model_index.json").unlink, weights.unlink):
        damage()
        assert mini.ensure("mini-sd15") == folder and weights.read_bytes() == whole
        assert [file.name for file in folder.parent.iterdir()] == [folder.name]
    (folder / mini.SIZES).unlink()  # as in folders of older versions
    before = weights.stat().st_ino
    assert mini.ensure("mini-sd15") == folder and weights.stat().st_ino == before


def test_ensure_interrupted_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))

    def broken(model, folder):
        folder.mkdir()
        raise FileNotFoundError(folder / "config.json")

    monkeypatch.setattr(mini, "_save_fp16", broken)
    with pytest.raises(FileNotFoundError):
        mini.ensure("mini-sd3")
    assert not list((tmp_path / "bases").iterdir())


def test_ensure_unknown_name_raises_with_nearest():
    with pytest.raises(UserError, match="did you mean 'mini-sd3'"):
        mini.ensure("mini-sd33")


def test_embedded_weights_stay_below_size_limits():
    def size(*folders: str) -> float:
        return sum(p.stat().st_size for f in folders for p in (MODELS / f).rglob("*.safetensors")) / 1e6

    for name in mini.names():
        assert size(name, mini.autoencoder(name).name, "clip") <= 45
    assert size("judges", "clip") <= 14


def test_clip_tokenizer_fits_all_captions():
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    rng, meta = random.Random(0), load_meta()
    texts = [
        caption(rng.choice(meta["split"]["core_concepts"]), style, rng, rng.choice([None, *BACKGROUNDS]), keyword=0)
        for style in range(len(meta["styles"]))
        for _ in range(60)
    ]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= tokenizer.model_max_length == 32


def test_clip_tokenizer_encodes_any_text():
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    ids = tokenizer("Ünïcödé 😀 ÿ zx9 \x07").input_ids[1:-1]
    assert ids and tokenizer.unk_token_id not in ids


def test_autoencoder_beats_linear_codec():
    vae = AutoencoderKL.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32)
    kernel, bias = ae.read_encoder(vae)
    world = load_slice()
    found = {"trained": [], "linear": []}
    for style in np.unique(world.style_id):
        rgb = world.rgb()[np.flatnonzero(world.style_id == style)[:6]]
        found["trained"].append(ae.psnr(vae, rgb).mean())
        found["linear"].append(ae.linear_psnr(rgb, kernel, bias).mean())
    assert np.mean(found["trained"]) >= 30 > np.mean(found["linear"])
    assert vae.config["shift_factor"] == 0.0
