"""Buckets and crops: shapes by area, never scaled up, and exactly what is cut out."""

import json
import math

import pytest
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from impasto.bases import single_file
from impasto.data.buckets import View, choose, covering, patch, shapes, step_of, views


@pytest.mark.parametrize(("size", "step"), [(1024, 64), (512, 64), (128, 16), (16, 8)])
def test_shapes_are_whole_steps_of_at_most_the_area(size, step):
    found = shapes(size, step)
    assert (size, size) in found and {(h, w) for w, h in found} == set(found)
    for width, height in found:
        assert width % step == height % step == 0 and width * height <= size**2
        assert min(width, height) >= size / 2 and max(width, height) <= 2 * size


def test_sdxl_s_shapes_are_among_them():
    """Portrait and landscape shapes that SDXL was trained at (arXiv 2307.01952, appendix I)."""
    assert {(832, 1216), (896, 1152), (768, 1344), (1216, 832), (1152, 896), (1344, 768)} <= set(shapes(1024, 64))


@given(st.integers(8, 4000), st.integers(8, 4000))
def test_a_picture_is_never_scaled_up_and_goes_to_the_nearest_ratio(width, height):
    shape = choose(width, height, 512, 64)
    if shape is None:
        assert all(w > width or h > height for w, h in (min_ratio(width, height, area) for area in range(256, 513, 64)))
        return
    assert shape[0] <= width and shape[1] <= height
    if width >= 1024 and height >= 1024:
        assert shape == min_ratio(width, height, 512)


def min_ratio(width, height, area):
    return min(shapes(area, 64), key=lambda s: (abs(math.log(width * s[1] / (height * s[0]))), -s[0] * s[1]))


@pytest.mark.parametrize(("size", "largest"), [(384, 512), (1024, 1536), (512, 512), (384, None)])
def test_no_bucket_is_longer_than_positions_reach(size, largest):
    found = shapes(size, 16, largest)
    assert found == tuple(shape for shape in shapes(size, 16) if max(shape) <= (largest or 2 * size))
    assert (size, size) in found


def test_a_wide_picture_where_positions_end():
    """mini-sd3 knows 32 tokens of 16 pixels a side."""
    assert choose(1200, 500, 384, 16) == (592, 240)
    assert choose(1200, 500, 384, 16, 512) == (512, 288)
    assert choose(500, 1200, 384, 16, 512) == (288, 512)


def test_small_pictures_go_into_smaller_buckets():
    assert choose(1024, 1024, 1024, 64) == (1024, 1024)
    assert choose(1023, 1023, 1024, 64) == (960, 960)
    assert choose(600, 600, 1024, 64) == (576, 576)
    assert choose(500, 500, 1024, 64) is None  # below half of the size
    assert choose(4000, 1000, 1024, 64) == (2048, 512)
    assert choose(4000, 100, 1024, 64) is None


@settings(max_examples=30)
@given(st.integers(8, 300), st.integers(8, 300), st.sampled_from([(16, 16), (8, 24), (48, 16)]))
def test_the_middle_is_what_pillow_fits(width, height, shape):
    """ImageOps.fit is the reference: what single pictures have always been cut by."""
    image = Image.linear_gradient("L").resize((width, height))
    ours = image.resize(shape, Image.Resampling.LANCZOS, box=covering(width, height, shape))
    assert ours.tobytes() == ImageOps.fit(image, shape, Image.Resampling.LANCZOS).tobytes()


@settings(max_examples=40)
@given(st.integers(16, 200), st.integers(16, 200), st.integers(1, 6))
def test_random_crops_lie_inside_keep_the_ratio_and_are_not_scaled_up(width, height, crops):
    found = views(width, height, (16, 16), crops, False, "name")
    assert found == views(width, height, (16, 16), crops, False, "name") and len(found) <= crops
    assert found[0].box == covering(width, height, (16, 16))
    for left, top, right, bottom in (view.box for view in found):
        assert -1e-6 <= left < right <= width + 1e-6 and -1e-6 <= top < bottom <= height + 1e-6
        assert right - left == pytest.approx(bottom - top) and right - left >= 16 - 1e-6
        assert right - left >= 0.7 * min(width, height) - 1e-6


def test_crops_differ_by_picture_and_number_and_need_room():
    one, other = (views(64, 64, (16, 16), 4, False, name) for name in ("one", "other"))
    assert len(set(one)) == 4 and set(one) & set(other) == {one[0]} == {other[0]}
    assert one == views(64, 64, (16, 16), 9, False, "one")[:4]  # more crops keep the first ones
    assert len(views(16, 16, (16, 16), 4, False, "one")) == 1
    assert len(views(10, 10, (16, 16), 4, False, "one")) == 1  # scaled up as a square: its middle only


def test_crops_with_scale_are_scaled_up_down_to_it():
    found = views(16, 16, (16, 16), 40, False, "one", 0.5)
    sides = [view.box[2] - view.box[0] for view in found]
    assert sides[0] == 16 and 8 <= min(sides) < 9.5 and len(found) == 40


def test_flips_only_when_asked():
    assert not any(view.mirrored for view in views(64, 64, (16, 16), 3, False, "x"))
    both = views(64, 64, (16, 16), 3, True, "x")
    assert [view.mirrored for view in both] == [False] * 3 + [True] * 3
    assert [view.box for view in both[:3]] == [view.box for view in both[3:]]


def test_size_conditions_by_hand():
    """A 400 x 200 picture, scaled to 200 x 100, the right half cut out for 100 x 100; mirrored, it is the left."""
    view = View((200.0, 0.0, 400.0, 200.0), (100, 100))
    assert view.record(400, 200) == (200, 400, 0, 100, 100, 100)
    assert View(view.box, view.shape, True).record(400, 200) == (200, 400, 0, 0, 100, 100)


def test_the_step_fits_the_base(tmp_path, tiny_sd3):
    assert step_of({"bucket_step": 16}, "mini-sd3", 128) == 16
    assert step_of({}, "owner/hub-id", 1024) == 64 == step_of({}, "owner/hub-id", 256)
    assert step_of({}, str(tiny_sd3), 16) == 8 and step_of({}, str(tiny_sd3), 512) == 64
    for part, config in (
        ("vae", {"block_out_channels": [1] * 4, "latent_channels": 16}),
        ("transformer", {"in_channels": 64, "patch_size": 1}),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    assert patch(str(tmp_path)) == 16  # FLUX packs 2 x 2
    (tmp_path / "transformer" / "config.json").unlink()
    assert patch(str(tmp_path)) is None
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"in_channels": 4, "block_out_channels": [1] * 4}))
    assert patch(str(tmp_path)) == 64  # the U-Net halves three times


def test_a_hub_id_and_a_file_have_the_step_of_their_folder(tmp_path, tiny_sd3, monkeypatch):
    """`base` may change from one to another when a run goes on, and its buckets must not."""
    snapshot = tmp_path / "hub" / "models--owner--sd3" / "snapshots" / ("0" * 40)
    for name in ("vae", "transformer"):
        (snapshot / name).mkdir(parents=True)
        (snapshot / name / "config.json").write_text((tiny_sd3 / name / "config.json").read_text())
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert step_of({}, "owner/sd3", 256) == step_of({}, str(tiny_sd3), 256) == 8
    assert step_of({}, "owner/sd3", 512) == 64
    (tmp_path / "a.safetensors").touch()
    monkeypatch.setattr(single_file, "config_folder", lambda file: tiny_sd3)
    assert step_of({}, str(tmp_path / "a.safetensors"), 256) == 8
