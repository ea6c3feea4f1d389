"""Region finders: proposals, assignment, both searches, what is refused."""

from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from impasto.bases.loader import load
from impasto.data.concepts import parse_caption
from impasto.errors import UserError
from impasto.regions import Search, attention, default_finder, error, find_concepts
from impasto.regions.assignment import assign
from impasto.regions.attention import attention_maps, base_size, otsu, phrase_rows, recording, region
from impasto.regions.overlay import overlay
from impasto.regions.proposals import components, crop, ground_colour, propose, windows

CAPTION = "a rocket, a cactus and a star in pixel art style"
BOXES = [(10, 10, 50, 40), (60, 8, 90, 44), (30, 60, 70, 92)]


def scene(ground="white") -> Image.Image:
    """Three things at BOXES, the third of two parts."""
    image = Image.new("RGB", (100, 100), ground)
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 10, 49, 39), fill="red")
    draw.ellipse((60, 8, 89, 43), fill="black")
    draw.rectangle((30, 60, 69, 73), fill="green")
    draw.rectangle((40, 78, 60, 91), fill="yellow")
    return image


@pytest.mark.parametrize("ground", ["white", "navy", "orange"])
def test_propose_on_a_plain_ground_merges_the_parts_of_a_thing(ground):
    assert sorted(proposal.box for proposal in propose(scene(ground), 3)) == sorted(BOXES)


def test_propose_adds_windows_where_the_ground_does_not_show_enough():
    found = propose(scene(), 5)
    assert sum(proposal.mask is None for proposal in found) == len(list(windows(100, 100)))
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    assert ground_colour(noise) is None
    assert all(proposal.mask is None for proposal in propose(Image.fromarray(noise), 3))


def test_windows_cover_the_image_and_stay_within():
    covered = np.zeros((60, 90), bool)
    for left, top, right, bottom in windows(90, 60):
        assert 0 <= left < right <= 90 and 0 <= top < bottom <= 60 and right - left == bottom - top
        covered[top:bottom, left:right] = True
    assert covered.all()


def test_components_are_connected_by_corners_and_specks_are_left_out():
    mask = np.zeros((200, 200), bool)
    mask[:50, :50] = mask[50:90, 50:90] = mask[100:160, 20:21] = True
    mask[199, 199] = True
    found = components(mask)
    assert [int(part.sum()) for part in found] == [2500 + 1600, 60]


def test_crop_of_a_mask_shows_only_its_own_pixels():
    proposals = {proposal.box: proposal for proposal in propose(scene(), 3)}
    pixels = np.asarray(crop(scene(), proposals[BOXES[0]], 64)).reshape(-1, 3)
    red = (pixels[:, 0] > 200) & (pixels[:, 1] < 60)
    assert 0.4 < red.mean() < 0.7 and (pixels[~red].min(1) > 90).mean() > 0.9
    assert np.asarray(crop(scene(), next(p for p in propose(scene(), 5) if p.mask is None), 64)).shape == (64, 64, 3)


def test_assign_is_exact_and_keeps_overlapping_boxes_apart():
    rng = np.random.default_rng(1)
    apart = [(20 * i, 0, 20 * i + 10, 10) for i in range(6)]
    for _ in range(20):
        cost = rng.normal(size=(6, 4))
        best = min(permutations(range(6), 4), key=lambda rows: sum(cost[row, i] for i, row in enumerate(rows)))
        assert assign(cost, apart) == list(best)
    cost = np.array([[0.0, 0.0], [0.1, 0.1], [1.0, 1.0]])
    near = [(0, 0, 10, 10), (1, 0, 11, 10), (40, 0, 50, 10)]
    assert sorted(assign(cost, near) or []) == [0, 2]
    assert assign(cost[:2], near[:2]) is None


class Recogniser:
    """Stands for a base: its error is smaller where the prompt's colour is that of the crop."""

    def __init__(self) -> None:
        self.card = {"size": 16}


COLOURS = {"red": (1, -1, -1), "black": (-1, -1, -1), "green": (-1, 0, -1)}


def test_error_finder_assigns_each_phrase_its_part(monkeypatch):
    def errors(family, crops, prompts, seed):
        pixels = [np.asarray(one).reshape(-1, 3) / 127.5 - 1 for one in crops]
        wanted = [np.array(COLOURS[prompt.split()[0]]) for prompt in prompts]
        near = [[(np.abs(p - w).max(1) < 0.3).mean() for w in wanted] for p in pixels]
        return 2 - torch.tensor(near, dtype=torch.float64)

    monkeypatch.setattr(error, "errors", errors)
    parsed = parse_caption("a green thing, a red thing and a black thing in pixel art style")
    found = error.find(Search(scene(), "", parsed, "", given=Recogniser()))  # pyright: ignore[reportArgumentType]
    assert [region.box for region in found] == [BOXES[2], BOXES[0], BOXES[1]]
    assert all(region.score is not None and region.score > 0 for region in found)


def test_errors_depend_on_phrase_and_seed_and_not_on_the_batch(tiny_sd15, monkeypatch):
    family = load(str(tiny_sd15), device="cpu")
    crops = [scene(ground).resize((16, 16)) for ground in ("white", "navy")]
    prompts = ["rocket in pixel art style", "cactus in pixel art style"]
    whole = error.errors(family, crops, prompts, draws=3)
    assert whole.shape == (2, 2) and (whole[:, 0] != whole[:, 1]).all()
    monkeypatch.setattr(error, "BATCH", 5)
    torch.testing.assert_close(error.errors(family, crops, prompts, draws=3), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(error.errors(family, crops[1:], prompts, draws=3), whole[1:], rtol=1e-5, atol=0)
    assert not torch.equal(error.errors(family, crops, prompts, seed=1, draws=3), whole)


def test_errors_of_a_phrase_that_the_encoder_cuts_off_are_refused(tiny_sd15):
    family, long = load(str(tiny_sd15), device="cpu"), "rocket with " + "many " * 80 + "fins"
    with pytest.raises(UserError, match=r"the text encoder cuts off the concept 'rocket with many .*fewer words"):
        error.errors(family, [scene().resize((16, 16))], ["cactus", long], draws=1)


def test_error_finder_warns_of_a_phrase_that_no_region_shows(monkeypatch):
    table = torch.tensor([[1.0, 2, 2], [2, 1.0, 2], [1.0, 1.0, 2]], dtype=torch.float64)
    monkeypatch.setattr(error, "errors", lambda family, crops, prompts, seed: table[: len(crops)])
    monkeypatch.setattr(error, "propose", lambda image, count: propose(image, count)[:3])
    parsed = parse_caption("a rocket, a cactus and a star in pixel art style")
    with pytest.warns(UserWarning, match="no region shows 'star' for certain"):
        error.find(Search(scene(), "", parsed, "", given=Recogniser()))  # pyright: ignore[reportArgumentType]


def prediction(family):
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(z, torch.tensor([-2.0]), family.encode_prompt([CAPTION]))


def test_recording_leaves_the_prediction_as_it_is(tiny_base):
    """On every family; the probabilities of all keys sum to 1, those of the text to less in joint attention."""
    family = load(str(tiny_base), device="cpu")
    before = prediction(family)
    text = family.encode_prompt([CAPTION])["text"].shape[1]
    with recording(family, text) as maps:
        assert torch.equal(prediction(family), before)
    assert torch.equal(prediction(family), before) and maps
    for layer in maps.values():
        total = layer.sum(1)
        assert layer.shape[1] == text and (layer >= 0).all()
        if family.part == "unet":
            torch.testing.assert_close(total, torch.ones_like(total))
        else:
            assert (total > 0).all() and (total < 1).all()


def test_recorded_probabilities_are_those_of_the_layer(tiny_base):
    """The recorded text share of a value-only probe: with values 1 at text tokens and 0 elsewhere, a layer's attention
    returns the sum of its text probabilities."""
    from torch.nn import functional

    family, seen = load(str(tiny_base), device="cpu"), []
    text = family.encode_prompt([CAPTION])["text"].shape[1]
    original = functional.scaled_dot_product_attention

    def probe(query, key, value, **rest):
        q, k, v = query, key, value
        first = family.text_first
        if k.shape[2] >= text and (family.part != "unet" or k.shape[2] == text):
            n = k.shape[2]
            words = torch.zeros(n, dtype=v.dtype)
            words[slice(text) if first else slice(n - text, n)] = 1
            weights = original(q, k, words[:, None].expand(v.shape).contiguous(), **rest)[..., 0].mean(1)[0]
            image = slice(text, None) if first else slice(weights.shape[0] - (0 if family.part == "unet" else text))
            seen.append(weights[image])
        return original(q, k, v, **rest)

    with pytest.MonkeyPatch.context() as patch, recording(family, text) as maps:
        patch.setattr(functional, "scaled_dot_product_attention", probe)
        prediction(family)
    recorded = [layer.sum(1) for layer in maps.values()]
    assert len(seen) >= len(recorded) > 0
    for layer in recorded:
        assert any(layer.shape == one.shape and torch.allclose(layer, one, atol=1e-5) for one in seen)


def test_phrase_rows_are_those_of_the_words(tiny_base):
    family = load(str(tiny_base), device="cpu")
    read = []
    for tokenizer, first, length in family.text_tokens():
        ids = tokenizer(CAPTION).input_ids
        rows = [row - first for row in phrase_rows(family, CAPTION, "cactus") if first <= row < first + length]
        read.append(tokenizer.decode([ids[row] for row in rows]).strip())
    assert read[0] == "cactus" and set(read) <= {"cactus", ""}  # T5 of the tiny SD3 reads one token
    with pytest.raises(UserError, match="'teapot' is not in the caption"):
        phrase_rows(family, CAPTION, "teapot")
    with pytest.raises(UserError, match="cuts off the concept 'cat'"):
        phrase_rows(family, "rabbit " * 60 + "cat in pixel art style", "cat")


def test_attention_maps_are_scaled_and_of_the_latents_size(tiny_base):
    family = load(str(tiny_base), device="cpu")
    maps = attention_maps(family, scene().resize((16, 16)), CAPTION, ("rocket", "cactus"))
    assert maps.shape == (2, 16 // family.unit, 16 // family.unit)
    assert maps.min() == 0 and maps.max() == 1


def test_attention_region_is_a_square_about_the_peak():
    found = torch.zeros(16, 16)
    found[2:5, 10:13] = 1.0
    box, score = region(found, 160, 160)
    assert box[2] - box[0] == box[3] - box[1] and box[0] < 115 < box[2] and box[1] < 35 < box[3]
    assert 0 < score <= 1
    assert 0.3 < otsu(np.concatenate([np.full(90, 0.1), np.full(10, 0.9)])) + 0.25 < 1.1


def test_base_size_keeps_area_and_proportions(tiny_sd3):
    family = load(str(tiny_sd3), device="cpu")
    assert base_size(family, 100, 100) == (16, 16) and base_size(family, 200, 100) == (24, 8)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scene.png"
    scene().save(path)
    return path


@pytest.mark.filterwarnings("ignore:no region shows")
def test_find_concepts_by_error_returns_a_valid_file(tiny_sd15, image):
    found = find_concepts(image, f"{CAPTION} on a white background", str(tiny_sd15), "error", device="cpu")
    assert [concept.kind for concept in found.concepts] == ["thing"] * 3 + ["attribute"]
    assert sorted(concept.box for concept in found.concepts if concept.box) == sorted(BOXES)
    assert overlay(scene(), found).width >= 640


def test_find_concepts_by_attention_takes_the_box_of_each_map(tiny_sd15, image, monkeypatch):
    maps = torch.zeros(3, 20, 20)
    for i, (left, top, right, bottom) in enumerate(BOXES):
        maps[i, top // 5 : bottom // 5, left // 5 : right // 5] = 1
    monkeypatch.setattr(attention, "attention_maps", lambda *given: maps)
    found = find_concepts(image, CAPTION, str(tiny_sd15), device="cpu")
    assert found.finder == "attention"
    for concept, (left, top, right, bottom) in zip(found.concepts, BOXES, strict=True):
        assert concept.box
        x, y = (concept.box[0] + concept.box[2]) / 2, (concept.box[1] + concept.box[3]) / 2
        assert left < x < right and top < y < bottom


def test_find_concepts_of_a_single_thing_uses_the_whole_image(tiny_sd15, image):
    with pytest.warns(UserWarning, match="nothing is scaled"):
        found = find_concepts(image, "a rocket in pixel art style", str(tiny_sd15), device="cpu")
    assert [concept.box for concept in found.concepts] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": BOXES[:2]}, r"2 boxes for 3 things \(rocket, cactus, star\)"),
        ({"boxes": BOXES, "finder": "error"}, "--finder error finds its own"),
        ({"finder": "eror"}, "did you mean 'error'"),
        ({"boxes": [*BOXES[:2], (0, 0, 200, 200)]}, "'star' is outside the image"),
        ({"phrases": [f"thing {i}" for i in range(9)]}, "9 things in the caption, at most 8"),
        ({"phrases": ["teapot", "star"], "finder": "attention"}, "'teapot' is not in the caption"),
    ],
)
def test_find_concepts_refuses(tiny_sd15, image, options, message):
    with pytest.raises(UserError, match=message):
        find_concepts(image, CAPTION, str(tiny_sd15), device="cpu", **options)


def test_find_concepts_with_boxes_reads_no_weights(image):
    found = find_concepts(image, CAPTION, "owner/name-that-is-not-here", boxes=BOXES)
    assert [concept.box for concept in found.concepts] == BOXES and found.finder == "boxes"


def test_default_finder_is_error_on_embedded_bases_only(tiny_sd15):
    assert (default_finder("mini-sd15"), default_finder(str(tiny_sd15))) == ("error", "attention")
