"""Encoders give the numbers of their own packages (tests/reference/encoders.json) and of transformers by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from impasto.errors import UserError
from impasto.evaluation import encoder_scores
from impasto.evaluation.encoders import ENCODERS, Encoder, base, load, load_all, split_name
from impasto.evaluation.encoders.pixels import resize_crop

REFERENCE = Path(__file__).parents[1] / "reference"
sys.path.insert(0, str(REFERENCE))
from random_weights import random_images, random_state  # noqa: E402

PUBLISHED = json.loads((REFERENCE / "encoders.json").read_text())
IMAGES = random_images()
PROMPTS = PUBLISHED["image-reward"]["prompts"]


def write_weights(name: str, file: Path) -> Path:
    """Random weights of the published shapes and names as safetensors."""
    state = random_state(PUBLISHED[name]["shapes"])
    save_file({key: torch.from_numpy(value) for key, value in state.items()}, file)
    return file


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{row: folder} of a tiny CLIP and a tiny ViT."""
    from tiny import encoder_folders

    found = {name: tmp_path_factory.mktemp(name) for name in ("clip", "dino")}
    encoder_folders(**found)
    return found


def test_csd_gives_the_embeddings_of_the_published_code(tmp_path):
    encoder = load(f"csd={write_weights('csd', tmp_path / 'csd.safetensors')}")
    found, expected = encoder.images(IMAGES), torch.tensor(PUBLISHED["csd"]["embeddings"])
    assert torch.allclose(found, expected, atol=2e-5)
    assert not torch.allclose(found[0], expected[1], atol=1e-2) and encoder.texts(PROMPTS) is None


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_gives_the_distances_of_its_package(tmp_path, net):
    write_weights(f"lpips-{net}", tmp_path / f"{net}.safetensors")
    published = PUBLISHED[f"lpips-{net}"]
    images = [image.resize((published["side"],) * 2, Image.Resampling.BICUBIC) for image in IMAGES]
    first, second = ([images[pair[k]] for pair in published["pairs"]] for k in (0, 1))
    found = load(f"lpips={tmp_path}").distances(first, second)
    assert found.tolist() == pytest.approx(published["distances"], rel=1e-4, abs=1e-6)
    mixed = load(f"lpips={tmp_path}").distances([*first, IMAGES[0]], [*second, IMAGES[3]])
    assert mixed[:3].tolist() == pytest.approx(found.tolist(), abs=1e-6) and mixed[3] > 0, "of any sizes"


def test_lpips_with_one_of_its_two_files_raises(tmp_path):
    state = random_state(PUBLISHED["lpips-alex"]["shapes"])
    lin = {key: torch.from_numpy(value) for key, value in state.items() if key.startswith("lin")}
    save_file(lin, tmp_path / "alex.safetensors")
    with pytest.raises(UserError, match="lacks the network"):
        load(f"lpips={tmp_path}")


def test_image_reward_gives_the_rewards_of_its_package(tmp_path):
    write_weights("image-reward", tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(PUBLISHED["image-reward"]["vocabulary"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    encoder = load(f"image-reward={tmp_path}")
    found = encoder.rewards(IMAGES, PROMPTS)
    assert found.tolist() == pytest.approx(PUBLISHED["image-reward"]["rewards"], abs=2e-4)
    swapped = encoder.rewards(IMAGES, PROMPTS[::-1])
    assert not torch.allclose(found, swapped, atol=1e-3), "the prompt counts"


@pytest.mark.parametrize("row", ["clip-b32", "dino", "dinov2", "small-clip"])
def test_transformers_encoders_give_processor_and_model_by_hand(row, folders):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = folders["clip" if "clip" in row else "dino"]
    encoder = load(f"{row}={folder}")
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor(IMAGES, return_tensors="pt")["pixel_values"]
        if "clip" in row:
            tokens = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, truncation=True, return_tensors="pt")
            output = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
            expected = torch.nn.functional.normalize(output.image_embeds, dim=-1)
            words = torch.nn.functional.normalize(output.text_embeds, dim=-1)
            texts = encoder.texts(PROMPTS)
            assert texts is not None and torch.allclose(texts, words, atol=1e-5)
        else:
            expected = torch.nn.functional.normalize(model(pixels).last_hidden_state[:, 0], dim=-1)
            assert encoder.texts(PROMPTS) is None
    assert torch.allclose(encoder.images(IMAGES), expected, atol=1e-5)
    assert encoder.source == str(folder) and len(encoder.version) == 12


def test_pickscore_is_scaled_cosine_by_hand(folders):
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folders["clip"]).eval(), AutoProcessor.from_pretrained(folders["clip"])
    with torch.no_grad():
        inputs = processor(text=PROMPTS, images=IMAGES, padding=True, return_tensors="pt")
        expected = model(**inputs).logits_per_image.diagonal().tolist()
    encoder = load(f"pickscore={folders['clip']}")
    assert encoder.rewards(IMAGES, PROMPTS).tolist() == pytest.approx(expected, abs=1e-4)
    rows = encoder_scores.score(encoder, IMAGES, PROMPTS)
    assert rows[1]["reward_minus_21"] == pytest.approx(expected[1] - 21, abs=1e-4)


def test_judges_and_small_clip_fill_the_same_interface():
    from impasto.artworld import load_slice

    world = load_slice(styles=["unifont"])
    images = [Image.fromarray(rgb) for rgb in world.rgb()[:3]]
    labels = [load("concept-judge").judges.labels[i] for i in world.concept_id[:3]]
    prompts = [f"{label} in pixel art style" for label in labels]
    for name in (name for name, row in ENCODERS.items() if row.packaged):
        encoder = load(name)
        rows = encoder_scores.score(encoder, images, prompts, [images[0]])
        assert set(rows[0]) == set(ENCODERS[name].scores) and len(encoder.version) == 12
        known = [row[ENCODERS[name].scores[0]] for row in rows]
        assert all(value is not None for value in known), name
    rewards = load("concept-judge").rewards(images[:2], [prompts[0], "something else"])
    assert rewards[0] == rewards[0] and rewards[1] != rewards[1], "NaN without a label"


def test_resize_crop_rounds_as_torchvision():
    values = np.zeros((37, 50, 3), np.uint8)
    values[:, ::2] = 255
    image = Image.fromarray(values)
    resized = image.resize((43, 32), Image.Resampling.BICUBIC)
    assert resize_crop(image, 32).tobytes() == resized.crop((6, 0, 38, 32)).tobytes(), "round(5.5) is 6"
    resized = image.resize((41, 31), Image.Resampling.BICUBIC)
    assert resize_crop(image, 31).tobytes() == resized.crop((5, 0, 36, 31)).tobytes()


def test_embeddings_do_not_depend_on_the_batch(folders, monkeypatch):
    encoder = load(f"clip-b32={folders['clip']}")
    whole = encoder.images(IMAGES)
    monkeypatch.setattr(base, "BATCH", 3)
    assert torch.allclose(encoder.images(IMAGES), whole, atol=1e-6)


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'dinov2'"):
        split_name("dinov")


@pytest.mark.parametrize("name", ["csd", "lpips", "image-reward"])
def test_encoder_without_source_says_what_to_convert(name):
    with pytest.raises(UserError, match=rf"{name} needs a source: .*impasto weights convert FILE, then {name}="):
        load(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("csd=missing.safetensors", "does not exist"),
        ("dino=FOLDER", r"encoder dino .*give a copy: dino=FOLDER"),
        ("csd=FOLDER", "holds no .safetensors file"),
        ("csd=FOLDER/model.bin", "convert first, impasto weights convert .*model.bin"),
        ("csd=FOLDER/other.safetensors", "the weights lack 'backbone.conv1.weight'"),
        ("pickscore=DINO", "has no text tower"),
    ],
)
def test_encoder_that_is_not_there_says_what_to_do(tmp_path, folders, text, message):
    if "/" in text:
        (tmp_path / "model.bin").write_bytes(b"x")
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message) as error:
        load(text.replace("FOLDER", str(tmp_path)).replace("DINO", str(folders["dino"])))
    assert "\n" not in str(error.value)


def test_load_all_refuses_one_name_twice():
    with pytest.raises(UserError, match="small-clip is given twice"):
        load_all(["small-clip", "small-clip"])


class Colours(Encoder):
    """Unit vectors of mean colours; every text is red."""

    def __init__(self) -> None:
        super().__init__("colours", None, None, 0)

    def images(self, images):
        means = np.stack([np.asarray(image.convert("RGB"), np.float32).mean((0, 1)) for image in images])
        return torch.nn.functional.normalize(torch.from_numpy(means), dim=-1)

    def texts(self, texts):
        return torch.tensor([[1.0, 0.0, 0.0]] * len(texts))


def test_scores_of_a_distance_have_their_definitions(tmp_path):
    write_weights("lpips-alex", tmp_path / "alex.safetensors")
    encoder, images = load(f"lpips={tmp_path}"), [image.resize((64, 64)) for image in IMAGES[:3]]
    rows = encoder_scores.score(encoder, images, ["a", "b", "a"], [IMAGES[1], images[0]])
    apart = encoder.distances([images[0]], [images[2]]).item()
    assert [row["diversity"] for row in rows] == [pytest.approx(apart), None, pytest.approx(apart)]
    assert rows[0]["reference"] == pytest.approx(encoder.distances([images[0]], [IMAGES[1]]).item() / 2)


def test_scores_of_embeddings_have_their_definitions():
    red, green = (Image.new("RGB", (8, 8), colour) for colour in ("red", "#00ff00"))
    prompts = ["a", "a", "b", None]
    rows = encoder_scores.score(Colours(), [red, green, red, green], prompts, [red, green.resize((9, 12))])
    assert [row["reference"] for row in rows] == pytest.approx([0.5] * 4)
    assert [row["text"] for row in rows] == [1, 0, 1, None]
    assert [row["clip_s"] for row in rows] == [2.5, 0, 2.5, None]
    assert [row["diversity"] for row in rows] == [1, 1, None, None], "of the same prompt only"
    assert encoder_scores.summary(rows)["text"]["mean"] == pytest.approx(2 / 3)
    assert encoder_scores.summary(rows)["text"]["n"] == 3
