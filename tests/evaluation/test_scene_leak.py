"""Leakage of a scene's things: log-odds against the base's, only of what the prompt does not name."""

import numpy as np
import pytest
import torch
from fakes import draw
from PIL import Image

from impasto.artworld import load_meta
from impasto.errors import UserError
from impasto.evaluation import evaluate
from impasto.evaluation.labels import Labels
from impasto.evaluation.leakage import describe_leak, log_odds, place_log_odds, scene_leak, windows
from impasto.evaluation.scene_leak import find_things, named_in

NAMES = ["rocket", "teapot", "lion", "house"]
BASE = log_odds(torch.tensor([[0.5, 0.2, 0.1, 0.9], [0.5, 0.2, 0.1, 0.9]]))
IMAGES = log_odds(torch.tensor([[0.5, 0.5, 0.1, 0.9], [0.9, 0.2, 0.5, 0.9]]))


def test_log_odds_stay_finite_and_keep_small_values_apart():
    found = log_odds(torch.tensor([0.0, 1e-12, 0.5, 1.0]))
    assert found.isfinite().all() and found[2] == 0 and (found.diff() > 5).all()
    assert found[1].item() == pytest.approx(-27.63, abs=0.01)


def test_scene_leak_counts_only_what_a_prompt_does_not_name():
    """Image 0 asks for the rocket, image 1 for the teapot and the lion."""
    leak = scene_leak(IMAGES, BASE, [0, 1, 2], [[0], [1, 2]], threshold=0.5, centred=False)
    assert leak is not None
    teapot, rocket, four = (log_odds(torch.tensor(p)).item() for p in (0.2, 0.9, 0.5))
    assert leak.things[0].log_odds == pytest.approx(rocket - four)
    assert leak.things[1].log_odds == pytest.approx(four - teapot)
    assert leak.things[2].log_odds == 0 and leak.things[2].images == 1
    assert leak.log_odds == pytest.approx(((four - teapot) / 2 + rocket) / 2)
    assert leak.images == 2 and leak.standard_error == pytest.approx(abs((four - teapot) / 2 - rocket) / 2)
    assert (leak.things[0].shown, leak.things[0].base_shown, leak.things[2].shown) == (1, 1, 0)


def test_scene_leak_of_the_base_is_zero():
    leak = scene_leak(BASE, BASE, [0, 1], [[0], [3]], threshold=0.5)
    assert leak is not None and leak.log_odds == 0 and leak.standard_error == 0


def test_scene_leak_centred_leaves_what_all_concepts_share():
    raised = BASE + 2
    raised[:, 1] += 3
    plain, centred = (scene_leak(raised, BASE, [1, 2], [[0], [0]], 0.5, centred=c) for c in (False, True))
    assert plain and centred
    assert (plain.things[1].log_odds, plain.things[2].log_odds) == pytest.approx((5, 2), abs=1e-4)
    assert (centred.things[1].log_odds, centred.things[2].log_odds) == pytest.approx((3, 0), abs=1e-4)


def test_scene_leak_of_prompts_that_name_all_is_unknown():
    assert scene_leak(IMAGES, BASE, [0, 1], [[0, 1], [1, 0]], threshold=0.5) is None
    single = scene_leak(IMAGES[:1], BASE[:1], [0, 1], [[0]], threshold=0.5)
    assert single and single.standard_error is None
    with pytest.raises(ValueError, match="as many images"):
        scene_leak(IMAGES, BASE[:1], [0], [[1], [1]], threshold=0.5)


def test_windows_cover_the_image_at_its_own_size():
    image = Image.new("RGB", (100, 60), "white")
    image.putpixel((0, 0), (255, 0, 0))
    found = windows(image)
    assert len(found) == 25 and {one.size for one in found} == {(60, 60)}
    assert [np.asarray(one).min() < 200 for one in found].count(True) == 1


def test_place_log_odds_see_a_small_thing_in_a_corner():
    """A judge that knows how red an image is: a window of it is redder than the whole."""

    class Redness:
        def concept(self, images):
            red = torch.tensor([[np.asarray(one)[..., 1].mean() / 255] for one in images])
            return torch.cat([1 - red, red], 1).clamp(0.01, 0.99)

    image = Image.new("RGB", (100, 100), "white")
    image.paste("red", (0, 0, 35, 35))
    odds = place_log_odds(Redness(), [image])  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(odds, log_odds(torch.tensor([[0.99, 0.99]])), rtol=1e-5, atol=0)


def test_describe_leak_names_the_things_with_their_shares():
    leak = scene_leak(IMAGES, BASE, [0, 1, 2], [[1], [0]], threshold=0.5)
    assert leak is not None
    told = describe_leak(leak, NAMES)
    assert told == "shows the reference's other things: rocket 100 % (base 100 %), teapot 0 %, lion 50 %"


KNOWN = Labels.from_meta(load_meta())


def scene_folder(path, shown, first_seed=0):
    """Images of (concept shown, prompt) with seeds."""
    for i, (concept, prompt) in enumerate(shown):
        draw(path / f"{i:04d}.png", 0, KNOWN.named(concept), prompt=prompt, seed=first_seed + i)
    return path


def test_evaluate_scene_leak_counts_unprompted_things_against_the_base(tmp_path, judges):
    prompts = ["rocket, ink style", "teapot, ink style"]
    ours = scene_folder(tmp_path / "ours", [("teapot", prompts[0]), ("teapot", prompts[1])])
    base = scene_folder(tmp_path / "base", [("rocket", prompts[0]), ("teapot", prompts[1])])
    options = {"reference_things": "teapot; lion", "judges": judges, "encoder": None}
    leak = evaluate(ours, base_images=base, **options)["scene_leak"]
    assert leak["things"]["teapot"]["images"] == 1 and leak["things"]["lion"]["images"] == 2
    assert leak["things"]["teapot"]["log_odds"] > 3 > abs(leak["things"]["lion"]["log_odds"])
    assert leak["text"] == "shows the reference's other things: lion 0 %, teapot 100 %"
    plain = evaluate(ours, **options)["scene_leak"]
    assert plain["log_odds"] is None and plain["things"]["teapot"] == {
        "images": 1, "shown": 1.0, "base_shown": None, "log_odds": None,
    }  # fmt: skip


def test_evaluate_scene_leak_against_other_seeds_is_shares_with_a_note(tmp_path, judges):
    ours, base = (scene_folder(tmp_path / name, [("rocket", "rocket, ink style")], seed) for name, seed in
                  (("ours", 0), ("base", 9)))  # fmt: skip
    result = evaluate(ours, base_images=base, reference_things="teapot; lion", judges=judges, encoder=None)
    assert result["scene_leak"]["log_odds"] is None and any("seeds" in note for note in result["notes"])


def test_evaluate_without_scene_has_no_scene_leak(tmp_path, judges):
    ours = scene_folder(tmp_path, [("rocket", "rocket, ink style")])
    assert evaluate(ours, judges=judges, encoder=None)["scene_leak"] is None


def test_named_in_takes_the_longer_label_first():
    things = [KNOWN.named(name) for name in ("rabbit", "rabbit face")]
    assert named_in("a Rabbit face, ink", things, KNOWN) == {things[1]}
    assert named_in("a rabbit and a rabbit face", things, KNOWN) == set(things)


def test_find_things_of_unknown_label_raises_with_nearest():
    with pytest.raises(UserError, match=r"unknown concept 'teapott'.*teapot"):
        find_things("teapott; lion", None, KNOWN)
