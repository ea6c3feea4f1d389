"""Training pairs of concepts: crops, masks, shares, captions, and what is refused."""

import json
import warnings
from dataclasses import replace

import pytest
from PIL import Image, ImageDraw

from impasto.bases.loader import load
from impasto.config import make_config
from impasto.data import items
from impasto.data.buckets import region_views
from impasto.data.concepts import Concept, ConceptFile, write_concepts
from impasto.data.draws import Draws
from impasto.data.items import hashes, summary
from impasto.data.pictures import look
from impasto.data.prepare import prepare_items
from impasto.errors import UserError
from impasto.noise.laws import noise_law

CAPTION = "a rocket and a star on a white background in ink style"
CONCEPTS = (
    Concept("rocket", "thing", (4, 6, 24, 30)),
    Concept("star", "thing", (40, 30, 60, 58)),
    Concept("white background", "attribute"),
)


@pytest.fixture
def scene(tmp_path):
    """(image, its concepts.json of the base "base")."""
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 6, 23, 29), fill="red")
    draw.ellipse((40, 30, 59, 57), fill="navy")
    image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png", write(tmp_path, CONCEPTS)


def write(folder, concepts, base="base"):
    facts = look(folder / "scene.png")
    parsed = (CAPTION, "ink", "{concept} in {style} style")
    write_concepts(folder / "c.json", ConceptFile(facts.sha256, 64, 64, base, "boxes", *parsed, tuple(concepts)))
    return folder / "c.json"


def read(scene, **keys):
    image, file = scene
    config = make_config(image=(image,), caption=(CAPTION,), concept_file=file, **{"size": 16} | keys)
    return items.read(config.data, "base", {"bucket_step": 8})


def test_items_of_concepts_have_sub_prompts_crops_and_half_of_the_draws(scene):
    found = read(scene)
    assert [one.caption for one in found] == [CAPTION, *(f"{c.phrase} in ink style" for c in CONCEPTS)]
    assert [one.concept for one in found] == [None, "rocket", "star", "white background"]
    assert [one.repeats for one in found] == [3, 1, 1, 1]
    whole, rocket, star, ground = found
    assert ground.views == whole.views and len(rocket.views) == 8
    for one, box in ((rocket, (4, 6, 24, 30)), (star, (40, 30, 60, 58))):
        for view in one.views:
            left, top, right, bottom = view.box
            assert 0 <= left <= box[0] and 0 <= top <= box[1] and box[2] <= right <= 64 and box[3] <= bottom <= 64
            assert right - left == pytest.approx(bottom - top)
    told = summary(found)
    assert told["pictures"] == 1 and [c["share"] for c in told["concepts"]] == [0.1667] * 3


def test_items_of_concepts_are_the_same_each_time_and_hashed(scene):
    assert read(scene) == read(scene)
    first = hashes(read(scene))
    assert hashes(read(scene, **{"data.concept_jitter": 0.05}))["data_sha256"] != first["data_sha256"]
    write(scene[0].parent, [replace(CONCEPTS[0], box=(4, 6, 25, 30)), *CONCEPTS[1:]])
    moved = hashes(read(scene))
    assert moved["data_sha256"] != first["data_sha256"] and moved["references_sha256"] == first["references_sha256"]


@pytest.mark.parametrize(("share", "repeats"), [(0.75, [1, 1, 1, 1]), (0.3, [7, 1, 1, 1]), (1.0, [1, 1, 1])])
def test_concept_share_gives_that_share_of_the_draws(scene, share, repeats):
    assert [one.repeats for one in read(scene, **{"data.concept_share": share})] == repeats


def test_mask_mode_keeps_the_whole_picture_and_weighs_the_region(scene, tiny_sd3):
    image, _ = scene
    file = write(image.parent, CONCEPTS, str(tiny_sd3))
    keys = {"image": (image,), "caption": (CAPTION,), "concept_file": file, "size": 16, "data.concept_mode": "mask"}
    config = make_config(**keys)
    found = items.read(config.data, str(tiny_sd3), {"bucket_step": 8})
    assert found[1].views == found[0].views and found[1].mask == (CONCEPTS[0].box, None) and found[3].mask is None
    family = load(str(tiny_sd3), device="cpu", precision="fp32")
    prepared = prepare_items(family, found)
    mask = prepared.masks[prepared.all_pairs[1].views[0]]
    assert mask is not None and mask.mean() == pytest.approx(1) and (mask[:, 3, 3] == 0).all() and mask[0, 0, 0] > 1
    assert prepared.masks[0] is None


def test_of_a_crop_the_regions_of_other_things_do_not_count(scene, tiny_sd3):
    image, _ = scene
    near = (Concept("rocket", "thing", (4, 4, 36, 36)), Concept("star", "thing", (37, 4, 60, 36)))
    file = write(image.parent, near, str(tiny_sd3))
    config = make_config(image=(image,), caption=(CAPTION,), concept_file=file, size=16, **{"data.concept_jitter": 0.0})
    found = items.read(config.data, str(tiny_sd3), {"bucket_step": 8})
    assert found[1].mask == (near[0].box, (near[1].box,)) and summary(found)["concepts"][0]["mode"] == "crop"
    prepared = prepare_items(load(str(tiny_sd3), device="cpu", precision="fp32"), found)
    mask = prepared.masks[prepared.all_pairs[1].views[0]]
    assert mask is not None and mask[0, 1, -1] < mask[0, 1, 1] == mask.max()
    file = write(image.parent, CONCEPTS, str(tiny_sd3))
    assert all(one.mask is None for one in items.read(config.data, str(tiny_sd3), {"bucket_step": 8}))


def test_draws_show_concepts_as_often_as_their_share(scene, tiny_sd3):
    image, _ = scene
    file = write(image.parent, CONCEPTS, str(tiny_sd3))
    config = make_config(image=(image,), caption=(CAPTION,), concept_file=file, size=16, batch=8)
    family = load(str(tiny_sd3), device="cpu", precision="fp32")
    prepared = prepare_items(family, items.read(config.data, str(tiny_sd3), {"bucket_step": 8}))
    draws = Draws(config, noise_law(config), prepared)
    prompts = [prompt for step in range(60) for prompt in draws(step, 0)[0].prompts]
    assert prompts.count(CAPTION) / len(prompts) == pytest.approx(0.5, abs=0.08)
    assert prompts.count("star in ink style") / len(prompts) == pytest.approx(1 / 6, abs=0.06)


def test_crops_smaller_than_the_training_size_are_named(scene):
    with pytest.warns(UserWarning, match=r"'rocket' 29 x 29 to 32 x 32.*smaller --size"):
        read(scene, size=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(scene, size=16)


def test_crops_in_buckets_keep_the_region_and_are_not_scaled_up(scene):
    file = write(
        scene[0].parent, [Concept("rocket", "thing", (2, 2, 62, 26)), Concept("star", "thing", (4, 30, 24, 60))]
    )
    wide, tall = read((scene[0], file), buckets="on", size=32)[1:]
    assert wide.shape[0] > wide.shape[1] and tall.shape[0] <= tall.shape[1]
    for one in (wide, tall):
        for view in one.views:
            assert view.box[2] - view.box[0] >= one.shape[0]


@pytest.mark.parametrize("box", [(0, 0, 10, 60), (50, 0, 64, 8), (20, 20, 24, 24)])
def test_region_views_stay_inside_a_picture_of_any_shape(box):
    for shape in ((16, 16), (32, 16), (16, 32)):
        for view in region_views(box, 64, 60, shape, 20, 0.5, True, "x"):
            left, top, right, bottom = view.box
            assert -1e-6 <= left < right <= 64 + 1e-6 and -1e-6 <= top < bottom <= 60 + 1e-6
            assert (right - left) / (bottom - top) == pytest.approx(shape[0] / shape[1])


def test_concepts_of_another_base_image_or_several_images_are_refused(scene, tmp_path):
    image, file = scene
    write(image.parent, CONCEPTS, "other")
    with pytest.raises(UserError, match="of the base 'other', not 'base'"):
        read(scene)
    write(image.parent, CONCEPTS)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"image_sha256": "0"}))
    with pytest.raises(UserError, match="of another image"):
        read(scene)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "b.png")
    config = make_config(image=(image, tmp_path / "b.png"), caption=(CAPTION,), concept_file=file, size=16)
    with pytest.raises(UserError, match="is of one image, and 2 are given"):
        items.read(config.data, "base", {})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"data.concept_share": 0.0}, "concept_share must be from 0.01"),
        ({"data.concept_share": float("nan")}, "concept_share must be from 0.01"),
        ({"data.concept_jitter": 0.7}, "concept_jitter must be from 0"),
        ({"data.concept_crops": 0}, "concept_crops must be above 0"),
        ({"data.concept_mode": "mask", "mask": "alpha"}, "exclude each other"),
        ({"data.concept_mode": "box"}, "one of crop, mask"),
    ],
)
def test_settings_of_concepts_out_of_range_are_refused(scene, keys, says):
    with pytest.raises(UserError, match=says):
        read(scene, **keys)


def test_jitter_0_has_one_crop(scene):
    assert len(read(scene, **{"data.concept_jitter": 0.0})[1].views) == 1
