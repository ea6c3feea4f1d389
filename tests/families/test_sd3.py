"""The SD3 family against the pipeline's own code."""

import json
import shutil
import warnings

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from impasto.bases import cards, loader
from impasto.bases import embedded as mini
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.families import files as families_files
from impasto.families.files import folder_hash
from impasto.families.sd3 import SD3

CPU = {"device": "cpu", "precision": "fp32"}
PROMPTS = ["a rocket in pixel art style", "a cat"]


@pytest.fixture(scope="module")
def pipe(tiny_sd3):
    return StableDiffusion3Pipeline.from_pretrained(tiny_sd3)


@pytest.fixture(scope="module")
def random_t5(tmp_path_factory):
    """A base whose T5 has non-zero outputs, so that its length matters."""
    from tiny import sd3_folder

    return sd3_folder(tmp_path_factory.mktemp("t5") / "sd3", zero_t5=False)


@pytest.mark.parametrize("length", [1, 5])
def test_encode_prompt_matches_pipeline(random_t5, length):
    pipe = StableDiffusion3Pipeline.from_pretrained(random_t5)
    cond = load(str(random_t5), device="cpu").encode_prompt(PROMPTS, length)
    with torch.no_grad():  # as in the pipeline's call
        text, _, pooled, _ = pipe.encode_prompt(PROMPTS, None, None, max_sequence_length=length)
    assert torch.equal(cond["text"], text) and torch.equal(cond["pooled"], pooled)
    assert cond["text"].shape[1] == 32 + length
    assert not torch.equal(cond["pooled"][0], cond["pooled"][1])


def test_encode_prompt_default_length_is_cards_first(tiny_sd3):
    family = load(str(tiny_sd3), device="cpu")
    assert family.text_lengths == {1: 0.75, 5: 0.25}
    assert family.encode_prompt(["a cat"])["text"].shape[1] == 33


def test_encode_prompt_without_t5_gives_zeros(tiny_sd3, tmp_path):
    folder = shutil.copytree(tiny_sd3, tmp_path / "no-t5")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    without = load(str(folder), device="cpu").encode_prompt(PROMPTS, 5)
    zero = load(str(tiny_sd3), device="cpu").encode_prompt(PROMPTS, 5)  # its T5 ends in zeros
    assert torch.equal(without["text"], zero["text"]) and torch.equal(without["pooled"], zero["pooled"])


def test_encode_prompt_truncated_warns(tiny_sd3):
    with pytest.warns(UserWarning, match="too long"):
        load(str(tiny_sd3), device="cpu").encode_prompt(["a rocket " * 40])


def test_encode_prompt_within_t5_length_does_not_warn(random_t5, tiny_sd3, tmp_path):
    """CLIP takes 32 tokens, T5 the requested length, unless there is no T5, or an embedded base's empty one."""
    family, longer = load(str(random_t5), device="cpu"), "a rocket " * 25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cond = family.encode_prompt([longer], 60)
        family.embed_clip([longer], cond)
    with pytest.warns(UserWarning, match="too long") as caught:
        family.encode_prompt([longer], 40)
    kept = str(caught[0].message)
    assert 32 / 2 < kept.count("rocket") < 25
    with pytest.warns(UserWarning, match="too long") as caught:
        family.encode_prompt([longer], 5)
    assert str(caught[0].message).count("rocket") < kept.count("rocket")
    copy = shutil.copytree(random_t5, tmp_path / "no-t5")
    index = json.loads((copy / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (copy / "model_index.json").write_text(json.dumps(index))
    for other in (load(str(copy), device="cpu"), SD3.load(random_t5, family.card | {"embedded": True}, **CPU)):
        with pytest.warns(UserWarning, match="too long"):
            other.encode_prompt([longer], 60)


def test_free_drops_parts_and_reloads_on_use(tiny_sd3):
    family = load(str(tiny_sd3), device="cpu")
    before = family.encode_prompt(["a cat"])["pooled"]
    family.free("encoders", "vae")
    assert "encoders" not in family.__dict__ and "vae" not in family.__dict__
    assert torch.equal(family.encode_prompt(["a cat"])["pooled"], before)


def test_folder_hash_ignores_other_files_and_versions(tiny_sd3, tmp_path):
    copy = shutil.copytree(tiny_sd3, tmp_path / "copy")
    (copy / "README.md").write_text("hello")
    (copy / "impasto.json").write_text("{}")
    text = copy / "text_encoder" / "config.json"
    text.write_text(text.read_text().replace('"transformers_version": "5', '"transformers_version": "6'))
    assert text.read_text() != (tiny_sd3 / "text_encoder" / "config.json").read_text()
    assert folder_hash(copy) == folder_hash(tiny_sd3)
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("3.0", "2.0"))
    assert folder_hash(copy) != folder_hash(tiny_sd3)


def test_folder_hash_ignores_variants_and_unlisted_folders(tiny_sd3, tmp_path):
    """Variants beside plain weights and folders missing in the index are ignored; a variant alone is hashed."""
    copy = shutil.copytree(tiny_sd3, tmp_path / "copy")
    name = "diffusion_pytorch_model"
    for extra in (f"{name}.fp16", f"{name}.fp16-00001-of-00002", f"{name}-00001-of-00002.fp16"):
        (copy / "transformer" / f"{extra}.safetensors").write_bytes(b"a variant")
    (copy / "transformer" / f"{name}.safetensors.index.fp16.json").write_text("{}")
    for other in ("vae_1_0", "feature_extractor"):  # the index says that there is none of the second
        (copy / other).mkdir()
        (copy / other / f"{name}.safetensors").write_bytes(b"another")
    assert folder_hash(copy) == folder_hash(tiny_sd3)
    (copy / "transformer" / f"{name}.safetensors.index.json").write_text("{}")
    assert folder_hash(copy) != folder_hash(tiny_sd3)
    (copy / "transformer" / f"{name}.safetensors").unlink()
    assert {file.name for file in families_files.hashed_files(copy) if "fp16" in file.name} == {
        *(file.name for file in (copy / "transformer").glob("*fp16*"))
    }


@pytest.mark.parametrize("name", mini.names())
def test_hashed_files_of_embedded_base_are_complete(name):
    """Cells, calibrations and runs are keyed by these hashes: they must not change while the packaged files do not."""
    folder = loader.locate(name)
    beside = {"impasto.json", "card.json", "sizes.json"}  # metadata
    there = {file for file in folder.rglob("*") if file.is_file() and file.parent != folder}
    there = {file for file in there if file.name != "card.json"}
    assert there | {folder / "model_index.json"} == set(families_files.hashed_files(folder))
    assert {file.name for file in folder.iterdir() if file.is_file()} - beside == {"model_index.json"}
    assert mini.card(name)["folder_sha256"] == folder_hash(folder)


def test_folder_hash_follows_links(tiny_sd3, tmp_path):
    """Two links to one folder and one within a component hash as their targets; a link to a parent is not followed."""
    copy = shutil.copytree(tiny_sd3, tmp_path / "copy")
    shutil.copytree(copy / "text_encoder", copy / "text_encoder_2", dirs_exist_ok=True)
    shutil.copytree(copy / "vae", copy / "transformer" / "more")
    before, files = folder_hash(copy), families_files.hashed_files(copy)
    (copy / "text_encoder").rename(tmp_path / "encoder")
    (copy / "transformer" / "more").rename(tmp_path / "more")
    shutil.rmtree(copy / "text_encoder_2")
    for name, target in (("text_encoder", "encoder"), ("text_encoder_2", "encoder"), ("transformer/more", "more")):
        (copy / name).symlink_to(tmp_path / target, target_is_directory=True)
    (copy / "vae" / "up").symlink_to(copy / "vae", target_is_directory=True)
    (copy / "vae" / "nowhere").symlink_to("nowhere")
    assert families_files.hashed_files(copy) == files and folder_hash(copy) == before
    for weights in (tmp_path / "encoder" / "model.safetensors", next((tmp_path / "more").glob("*.safetensors"))):
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
        changed = folder_hash(copy)
        assert changed != before
        before = changed


def test_load_invalid_base_raises(tiny_sd3, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'mini-sd3'"):
        load("mini-sd")
    with pytest.raises(UserError, match=r"no model_index\.json"):
        load(str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(UserError, match="NoSuchPipeline"):
        load(str(other))
    for text in ("{", "[]", '{"_class_name": null}', '{"_class_name": ["a"]}', "[" * 100_000):
        (other / "model_index.json").write_text(text)
        with pytest.raises(UserError, match=r"model_index\.json cannot be read"):
            load(str(other))
    copy = shutil.copytree(tiny_sd3, tmp_path / "copy")
    for text in ("{", "[]", "[" * 100_000):
        (copy / "impasto.json").write_text(text)
        with pytest.raises(UserError, match=r"impasto\.json cannot be read"):
            cards.card(str(copy))
    with pytest.raises(UserError, match="cannot be fetched from the hub"):
        load("owner/no-such-model")
    with pytest.raises(UserError, match="unknown device"):
        load(str(tiny_sd3), device="gpu")
    with pytest.raises(UserError, match="unknown precision"):
        load(str(tiny_sd3), precision="fp17")


def test_cards_have_all_keys():
    """Every base has the keys that training and generating need."""
    for name in cards.cards():
        card = cards.card(name) if "/" in name or name in cards.embedded() else cards.cards()[name]
        assert {"size", "generate", "train", "license"} <= card.keys(), name
        assert sum(card.get("text_lengths", {"one": 1}).values()) == pytest.approx(1)
        tokens = card.get("pipeline", name) == "AmusedPipeline"
        assert card["generate"].keys() == {"steps", "guidance", "batch", *(["temperature"] if tokens else [])}
        assert card["train"].keys() == {"lr", "steps", "batch", "accumulate", *(["objective"] if tokens else [])}
