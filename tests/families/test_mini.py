"""The embedded base as a user meets it: an ordinary diffusers folder."""

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


def test_the_plain_call_works_with_no_other_argument(pipe):
    picture = pipe("a rocket, flat minimal vector sticker without outlines").images[0]
    assert picture.size == (128, 128)
    assert np.asarray(picture).std() > 5  # not one flat colour


def test_prompts_are_told_apart_and_encoded_as_in_pretraining(pipe):
    texts = ["a rocket, flat colours", "a cactus, flat colours"]
    hidden, _, pooled, _ = pipe.encode_prompt(texts, None, None, max_sequence_length=1)
    assert float((pooled[0] - pooled[1]).abs().max()) > 0.05
    expected = MMDiT().text(mini.text_tower(MODELS / "clip"), tokens(pipe.tokenizer, texts))
    assert torch.allclose(hidden, expected["encoder_hidden_states"], atol=1e-5)
    assert torch.allclose(pooled, expected["pooled_projections"], atol=1e-5)
    t5 = pipe.encode_prompt(texts, None, None)[0][:, hidden.shape[1] - 1 :]
    assert t5.shape[1] == 256 and float(t5.abs().max()) == 0


def test_a_u_net_makes_an_ordinary_sd15_folder(tmp_path):
    """The plain call works, and hears its prompts as in pretraining."""
    net = UNet()
    torch.manual_seed(0)
    export_weights(net, net.new((32, 32, 32)), tmp_path / "mini-sd15")
    mini.write_folder(tmp_path / "folder", tmp_path / "mini-sd15", MODELS / "autoencoder", MODELS / "clip")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a rocket, flat colours", num_inference_steps=2).images[0].size == (128, 128)
    texts = ["a rocket, flat colours", "a cactus, flat colours"]
    heard = pipe.encode_prompt(texts, "cpu", 1, False)[0]
    expected = net.text(mini.text_tower(MODELS / "clip"), tokens(pipe.tokenizer, texts))["encoder_hidden_states"]
    assert torch.allclose(heard, expected, atol=1e-5) and not torch.allclose(heard[0], heard[1])


def test_the_folder_is_made_once_and_bound_to_the_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    folder = mini.ensure("mini-sd3")
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert mini.ensure("mini-sd3") == folder and (folder / "model_index.json").stat().st_mtime_ns == before
    assert folder.name.endswith(mini.weights_hash("mini-sd3")[:12])
    assert mini.card("mini-sd3")["weights_sha256"] == mini.weights_hash("mini-sd3")


def test_a_damaged_folder_is_made_again_and_a_whole_one_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    folder = mini.ensure("mini-sd15")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for harm in (lambda: weights.write_bytes(whole[:1000]), (folder / "model_index.json").unlink, weights.unlink):
        harm()
        assert mini.ensure("mini-sd15") == folder and weights.read_bytes() == whole
        assert [file.name for file in folder.parent.iterdir()] == [folder.name]
    (folder / mini.SIZES).unlink()  # as one of before has it
    before = weights.stat().st_ino
    assert mini.ensure("mini-sd15") == folder and weights.stat().st_ino == before


def test_what_breaks_off_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))

    def broken(model, folder):
        folder.mkdir()
        raise FileNotFoundError(folder / "config.json")

    monkeypatch.setattr(mini, "_save_fp16", broken)
    with pytest.raises(FileNotFoundError):
        mini.ensure("mini-sd3")
    assert not list((tmp_path / "bases").iterdir())


def test_an_unknown_base_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mini-sd3'"):
        mini.ensure("mini-sd33")


def test_sizes_keep_their_bounds():
    def size(*folders: str) -> float:
        return sum(p.stat().st_size for f in folders for p in (MODELS / f).rglob("*.safetensors")) / 1e6

    for name in mini.names():
        assert size(name, "autoencoder", "clip") <= 45
    assert size("judges", "clip") <= 14


def test_no_caption_is_cut():
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    rng, meta = random.Random(0), load_meta()
    texts = [
        caption(rng.choice(meta["split"]["core_concepts"]), style, rng, rng.choice([None, *BACKGROUNDS]), keyword=0)
        for style in range(len(meta["styles"]))
        for _ in range(60)
    ]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= tokenizer.model_max_length == 32


def test_any_text_is_known_to_the_tokeniser():
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    ids = tokenizer("Ünïcödé 😀 ÿ zx9 \x07").input_ids[1:-1]
    assert ids and tokenizer.unk_token_id not in ids


def test_the_autoencoder_beats_the_linear_codec_by_far():
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
