"""`evaluate`: known answers with fake judges, null for unknown scores, bad input."""

import json
import math
import os
import weakref
from pathlib import Path

import pytest
from fakes import draw
from PIL import Image, PngImagePlugin

from impasto.artworld import load_meta
from impasto.data import references
from impasto.errors import UserError
from impasto.evaluation import SCORES, evaluate
from impasto.evaluation.labels import Labels, read_concepts
from impasto.evaluation.samples import open_image, read_folder
from impasto.evaluation.truth import true_pictures
from impasto.judges.model import Judges
from impasto.styles.weights import style_hash

META = load_meta()
LABELS = [concept["label"] for concept in META["concepts"]]
UNIFONT = META["style_names"].index("unifont")
PENGUIN, ROCKET, FROG, RABBIT = (LABELS.index(name) for name in ("penguin", "rocket", "frog", "rabbit face"))
KNOWN = Labels.from_meta(META)
STYLE = "16 by 16 black and white pixel art"


@pytest.fixture
def truths(monkeypatch):
    """Fake true images that the fake judges classify as the expected cell."""

    def fake(style, concepts, ground):
        return {c: Image.new("RGB", (128, 128), (style * 10 + 5, c // 256, c % 256)) for c in concepts if c != FROG}

    monkeypatch.setattr("impasto.evaluation.folder.true_pictures", fake)


def folder_of(path: Path, shown: list[tuple[int, int, int]], **meta) -> Path:
    """Write images (style shown, concept shown, concept of the prompt) with their prompts in the metadata."""
    for i, (style, concept, asked) in enumerate(shown):
        draw(path / f"{i:04d}.png", style, concept, prompt=f"{LABELS[asked]}, {STYLE}", seed=i, **meta)
    return path


def test_evaluate_known_answers(tmp_path, judges, encoder, truths):
    ph, mono = META["style_names"].index("ph"), META["style_names"].index("symbola")
    shown = [(UNIFONT, PENGUIN, PENGUIN), (UNIFONT, RABBIT, ROCKET), (ph, FROG, FROG), (mono, RABBIT, RABBIT)]
    scores = evaluate(
        folder_of(tmp_path, shown), "unifont", reference_concept="rabbit face", judges=judges, encoder=encoder
    )
    assert scores["style_accuracy"] == 0.5 and scores["kind_accuracy"] == 0.5
    assert math.isclose(scores["style_probability"], (0.9 + 0.9 + 0.1 / 18 + 0.1 / 18) / 4, rel_tol=1e-5)
    assert scores["concept_top1"] == 0.75
    assert scores["leakage"] == pytest.approx(1 / 3), "the prompt of the rabbit itself is excluded"
    assert scores["n"]["leakage"] == 3 and scores["n"]["ssim"] == 3, "the frog has no true image here"
    assert scores["interval"]["style_accuracy"][0] < 0.5 < scores["interval"]["style_accuracy"][1]
    assert scores["true"]["style_accuracy"] == 1.0 and scores["true"]["leakage"] == 0.0
    assert scores["true"]["ssim"] is None, "true images are not paired"
    assert scores["base"] is None and scores["clip_i_reference"] is None and scores["style_cosine"] is None
    assert scores["images"][0]["ssim"] == pytest.approx(1.0) and scores["images"][0]["mse"] == pytest.approx(0.0)
    assert scores["clip_t"] is not None
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(scores))


def test_evaluate_with_base_images_scores_both(tmp_path, judges, encoder, truths):
    ours = folder_of(tmp_path / "ours", [(UNIFONT, RABBIT, PENGUIN), (UNIFONT, ROCKET, ROCKET)])
    base = folder_of(tmp_path / "base", [(0, PENGUIN, PENGUIN), (0, ROCKET, ROCKET)])
    scores = evaluate(
        ours, "unifont", reference_concept="rabbit face", base_images=base, judges=judges, encoder=encoder
    )
    assert (scores["leakage"], scores["base"]["leakage"]) == (0.5, 0.0)
    assert (scores["style_accuracy"], scores["base"]["style_accuracy"]) == (1.0, 0.0)


def test_evaluate_with_base_images_of_other_prompts_raises(tmp_path, judges):
    ours = folder_of(tmp_path / "ours", [(0, PENGUIN, PENGUIN), (0, ROCKET, ROCKET)])
    turned = folder_of(tmp_path / "turned", [(0, ROCKET, ROCKET), (0, PENGUIN, PENGUIN)])
    assert evaluate(ours, base_images=turned, judges=judges, encoder=None)["base"]["concept_top1"] == 1.0
    for i, asked in enumerate(([PENGUIN, FROG], [PENGUIN], [PENGUIN, ROCKET, ROCKET])):
        other = folder_of(tmp_path / str(i), [(0, PENGUIN, concept) for concept in asked])
        with pytest.raises(UserError, match="does not have the same prompts"):
            evaluate(ours, base_images=other, judges=judges, encoder=None)
    draw(tmp_path / "mute" / "0000.png", 0, PENGUIN)
    notes = evaluate(ours, base_images=tmp_path / "mute", judges=judges, encoder=None)["notes"]
    assert any("whether the base's images have the same prompts is unknown" in note for note in notes)


def test_evaluate_without_metadata_returns_none(tmp_path, judges, encoder):
    draw(tmp_path / "a.png", 3, PENGUIN)
    scores = evaluate(tmp_path, judges=judges, encoder=None)
    known = [name for name in SCORES if scores[name] is not None]
    assert known == []
    assert all(scores["interval"][name] is None and scores["n"][name] == 0 for name in SCORES)
    assert scores["true"] is None and scores["style_of"] is None
    assert "contain no prompt" in " ".join(scores["notes"])


def test_evaluate_uncertain_prompt_is_excluded_with_note(tmp_path, judges, encoder):
    folder = folder_of(tmp_path, [(UNIFONT, PENGUIN, PENGUIN), (UNIFONT, ROCKET, PENGUIN)])
    draw(folder / "0002.png", UNIFONT, ROCKET, prompt="a happy corgi in ink style", seed=2)
    scores = evaluate(folder, judges=judges, encoder=None)
    assert scores["concept_top1"] == 0.5 and scores["n"]["concept_top1"] == 2
    assert [row["concept"] for row in scores["images"]].count(None) == 1
    assert any(note.startswith("1 of 3 prompts have no label") for note in scores["notes"])


def test_evaluate_unknown_style_by_reference(tmp_path, judges, encoder):
    folder = folder_of(tmp_path / "images", [(UNIFONT, PENGUIN, PENGUIN)] * 2)
    reference = draw(tmp_path / "ref.png", UNIFONT, PENGUIN)
    scores = evaluate(folder, reference=reference, judges=judges, encoder=encoder)
    assert scores["style_cosine"] == pytest.approx(1.0) and scores["clip_i_reference"] == pytest.approx(1.0)
    assert scores["style_accuracy"] is None and scores["leakage"] is None and scores["true"] is None
    assert scores["concept_top1"] == 1.0
    assert scores["reference"]["concept"] is None and len(scores["reference"]["sha256"]) == 64


def test_evaluate_reads_reference_of_style_folder(tmp_path, judges, encoder, truths):
    run = tmp_path / "run"
    draw(run / "reference.png", UNIFONT, RABBIT)
    (run / "recipe.toml").write_text('caption = ["a rabbit face in pixel art style"]\n')
    styles = [{"path": str(run), "strength": 1.0}]
    folder = folder_of(tmp_path / "images", [(UNIFONT, RABBIT, PENGUIN), (UNIFONT, RABBIT, RABBIT)], styles=styles)
    scores = evaluate(folder, "unifont", judges=judges, encoder=encoder)
    assert scores["reference"]["concept"] == "rabbit face"
    assert scores["leakage"] == 1.0 and scores["n"]["leakage"] == 1
    assert scores["clip_i_reference"] is not None


def style_of(folder: Path, weights: bytes, recipe: str = 'caption = ["a rabbit face in pixel art style"]\n') -> str:
    """Write a style folder; returns the style hash of its images' metadata."""
    draw(folder / "reference.png", UNIFONT, RABBIT)
    (folder / "pytorch_lora_weights.safetensors").write_bytes(weights)
    (folder / "recipe.toml").write_text(recipe)
    return style_hash(folder)


def test_evaluate_ignores_style_folder_with_other_weights(tmp_path, judges, encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    styles = [{"path": "runs/s", "strength": 1.0, "hash": style_of(Path("runs/s"), b"one")}]
    folder = folder_of(tmp_path / "images", [(UNIFONT, RABBIT, PENGUIN)], styles=styles)
    scores = evaluate(folder, judges=judges, encoder=encoder)
    assert scores["leakage"] == 1.0 and scores["style_cosine"] is not None
    for weights in (b"another", None):
        if weights is None:
            Path("runs/s/pytorch_lora_weights.safetensors").unlink()
        else:
            style_of(Path("runs/s"), weights)
        scores = evaluate(folder, judges=judges, encoder=encoder)
        assert scores["reference"] is None and scores["leakage"] is None and scores["style_cosine"] is None
        assert any(note.startswith("'runs/s' no longer holds the style") for note in scores["notes"])
    scores = evaluate(folder, None, None, "runs/s/reference.png", "rabbit face", judges=judges, encoder=encoder)
    assert scores["leakage"] == 1.0 and not any("no longer" in note for note in scores["notes"])


@pytest.mark.parametrize(
    ("recipe", "concept"),
    [
        ('caption = []\n[impasto]\ncaptions = ["a rabbit face in ink style", "a frog in ink style"]\n', "rabbit face"),
        ('caption = ["rabbit face, [trigger]"]\ntrigger = "happy"\n', "rabbit face"),
        ("caption = 5\n", None),
        ('impasto = "x"\n', None),
        ("= 5", None),
    ],
)
def test_evaluate_reads_training_captions(tmp_path, judges, recipe, concept):
    styles = [{"path": str(tmp_path / "s"), "hash": style_of(tmp_path / "s", b"one", recipe)}]
    folder = folder_of(tmp_path / "images", [(UNIFONT, RABBIT, PENGUIN)], styles=styles)
    scores = evaluate(folder, judges=judges, encoder=None)
    assert scores["reference"]["concept"] == concept and (scores["leakage"] is None) == (concept is None)
    noted = any(note.endswith("leakage is of the first, rabbit face") for note in scores["notes"])
    assert noted == ("frog" in recipe)


def test_evaluate_with_concepts_file(tmp_path, judges, encoder, truths):
    for i, concept in enumerate((PENGUIN, ROCKET)):
        draw(tmp_path / f"{i:04d}.png", UNIFONT, concept)
    names = tmp_path / "concepts.txt"
    names.write_text("penguin\nfrog\n")
    scores = evaluate(tmp_path, "unifont", concepts=names, judges=judges, encoder=encoder)
    assert scores["concept_top1"] == 0.5 and scores["clip_t"] is None and scores["notes"][0].startswith("1 concepts")
    names.write_text("penguin\n")
    with pytest.raises(UserError, match="1 lines for 2 images"):
        evaluate(tmp_path, concepts=names, judges=judges, encoder=encoder)
    names.write_text("penguin\npengiun\n")
    with pytest.raises(UserError, match="did you mean 'penguin'"):
        evaluate(tmp_path, concepts=names, judges=judges, encoder=encoder)
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(tmp_path, concepts=tmp_path / "none.txt", judges=judges, encoder=encoder)


@pytest.mark.parametrize("text", ["penguin\n\n", "penguin\n\n\n", "penguin\r\n\r\n", "\ufeffpenguin\n\n", "penguin\n "])
def test_read_concepts_empty_line_is_unknown(tmp_path, text):
    file = tmp_path / "concepts.txt"
    file.write_bytes(text.encode())
    assert read_concepts(file, 2, KNOWN) == [PENGUIN, None]


def test_read_concepts_with_byte_order_mark(tmp_path):
    file = tmp_path / "concepts.txt"
    file.write_text("\ufeff\npenguin\n", encoding="utf-8")
    assert read_concepts(file, 2, KNOWN) == [None, PENGUIN]
    with pytest.raises(UserError, match="2 lines for 4 images"):
        read_concepts(file, 4, KNOWN)


def test_evaluate_is_deterministic(tmp_path, judges, encoder, truths):
    folder = folder_of(tmp_path, [(UNIFONT, PENGUIN, PENGUIN), (3, ROCKET, FROG), (5, FROG, FROG)])
    first = evaluate(folder, "unifont", judges=judges, encoder=encoder, out=tmp_path / "one.json")
    evaluate(folder, "unifont", judges=judges, encoder=encoder, out=tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert not (folder / "scores.json").exists() and first["images_scored"] == 3


def test_read_folder_prefers_numbered_images(tmp_path, judges, encoder):
    draw(tmp_path / "0000.png", UNIFONT, PENGUIN)
    draw(tmp_path / "grid.png", UNIFONT, PENGUIN)
    assert evaluate(tmp_path, judges=judges, encoder=encoder)["images_scored"] == 1


def test_evaluate_of_bad_folder_raises(tmp_path, judges):
    with pytest.raises(UserError, match="does not exist"):
        evaluate(tmp_path / "nothing", judges=judges)
    with pytest.raises(UserError, match="holds no PNG"):
        evaluate(tmp_path, judges=judges)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        evaluate(file, judges=judges)


@pytest.mark.parametrize("mark", ["recipe.toml", "demo.json"])
def test_evaluate_of_style_or_demo_folder_raises(tmp_path, judges, mark):
    draw(tmp_path / "reference.png", UNIFONT, PENGUIN)
    (tmp_path / mark).write_text("")
    with pytest.raises(UserError, match=r"give that of its images, such as .*images"):
        evaluate(tmp_path, judges=judges, encoder=None)
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "mine"])
def test_evaluate_keeps_foreign_files(tmp_path, judges, text):
    draw(tmp_path / "0000.png", UNIFONT, PENGUIN)
    for file, out in ((tmp_path / "scores.json", None), (tmp_path / "other.json", tmp_path / "other.json")):
        file.write_text(text)
        with pytest.raises(UserError, match=f"{file.name} was not written by `impasto evaluate`"):
            evaluate(tmp_path, judges=judges, encoder=None, out=out)
        assert file.read_text() == text
        file.unlink()
        first = evaluate(tmp_path, judges=judges, encoder=None, out=out)
        assert evaluate(tmp_path, judges=judges, encoder=None, out=out) == first, "its own are replaced"


def test_evaluate_of_folder_with_non_utf8_name(tmp_path, judges):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    draw(folder / "0000.png", UNIFONT, PENGUIN)
    evaluate(folder, judges=judges, encoder=None)
    assert json.loads((folder / "scores.json").read_text(encoding="utf-8"))["folder"] == str(folder)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 20])
def test_evaluate_of_unreadable_image_raises_one_line(tmp_path, judges, content):
    (tmp_path / "0000.png").write_bytes(content)
    with pytest.raises(UserError) as error:
        evaluate(tmp_path, judges=judges, encoder=None)
    assert "0000.png" in str(error.value) and "\n" not in str(error.value)


def test_evaluate_keeps_one_batch_in_memory(tmp_path, judges, encoder, truths, monkeypatch):
    """At most one batch is in memory, and one image while a folder is read."""
    decode, alive, most = references.decode, [], [0]

    def watched(*args):
        found = decode(*args)
        alive[:] = [one for one in alive if one() is not None] + [weakref.ref(found[0])]
        most[0] = max(most[0], len(alive))
        return found

    folder = folder_of(tmp_path, [(UNIFONT, PENGUIN, PENGUIN), (UNIFONT, RABBIT, ROCKET)] * 8)
    whole = evaluate(folder, "unifont", base_images=folder, judges=judges, encoder=encoder)
    monkeypatch.setattr(references, "decode", watched)
    samples = read_folder(folder)
    assert len(samples) == 16 and most[0] <= 2
    monkeypatch.setattr("impasto.evaluation.scorer.BATCH", 3)
    scores = evaluate(folder, "unifont", base_images=folder, judges=judges, encoder=encoder)
    assert most[0] <= 3 + 1
    assert scores["images"] == [
        {name: pytest.approx(value) if isinstance(value, float) else value for name, value in row.items()}
        for row in whole["images"]
    ], "the batch does not matter"


def test_evaluate_leaves_out_damaged_images_and_names_them(tmp_path, judges, encoder):
    folder = folder_of(tmp_path / "a", [(UNIFONT, PENGUIN, PENGUIN)] * 2 + [(UNIFONT, ROCKET, ROCKET)])
    base = folder_of(tmp_path / "b", [(UNIFONT, PENGUIN, PENGUIN)] * 2 + [(UNIFONT, ROCKET, ROCKET)])
    (folder / "0001.png").write_bytes((folder / "0000.png").read_bytes()[:-40])
    names = tmp_path / "concepts.txt"
    names.write_text("penguin\nfrog\nrocket\n")
    scores = evaluate(folder, concepts=names, judges=judges, encoder=encoder)
    assert scores["images_scored"] == 2 and scores["concept_top1"] == 1, "the line of the damaged image is passed over"
    assert len(scores["unreadable"]) == 1 and "1 of 3 images cannot be read" in scores["notes"][0]
    assert "0001.png' is damaged" in scores["notes"][0]
    assert evaluate(folder, base_images=base, judges=judges, encoder=None)["base"]["n"]["concept_top1"] == 3
    for file in folder.glob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="none of the 3 images"):
        evaluate(folder, judges=judges, encoder=None)


def test_evaluate_of_unknown_style_raises_with_nearest(tmp_path, judges):
    draw(tmp_path / "0000.png", UNIFONT, PENGUIN)
    with pytest.raises(UserError, match="did you mean 'unifont'"):
        evaluate(tmp_path, "unifnt", judges=judges, encoder=None)


def test_evaluate_with_missing_reference_raises(tmp_path, judges):
    draw(tmp_path / "0000.png", UNIFONT, PENGUIN)
    with pytest.raises(UserError, match="does not exist"):
        evaluate(tmp_path, reference=tmp_path / "none.png", judges=judges, encoder=None)


@pytest.mark.parametrize(
    "chunk",
    [
        *("{not json", "[1]", "[" * 100_000, "1" * 5000, '{"prompt": 5}', '{"prompt": ["a"]}', '{"prompt": NaN}'),
        *('{"prompt": "a", "styles": "x"}', '{"prompt": "a", "styles": ["runs/neon"]}', '{"prompt": "a", "styles": 5}'),
        r'{"prompt": "\ud800"}',
    ],
)
def test_evaluate_ignores_foreign_metadata(tmp_path, judges, encoder, chunk):
    info = PngImagePlugin.PngInfo()
    info.add_text("impasto", chunk)
    Image.new("RGB", (128, 128)).save(tmp_path / "0000.png", pnginfo=info)
    scores = evaluate(tmp_path, judges=judges, encoder=encoder)
    assert scores["concept_top1"] is None and scores["images"][0]["prompt"] is None
    assert any(note.startswith("1 of 1 images contain no prompt") for note in scores["notes"])


def test_open_image_with_large_text_chunk(tmp_path):
    """A text that Pillow refuses to decompress (a ComfyUI workflow)."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 2_000_000, zip=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png", pnginfo=info)
    image, meta = open_image(tmp_path / "a.png")
    assert image.getpixel((0, 0)) == (255, 0, 0) and meta == {}


def test_evaluate_concepts_are_null_where_the_judge_does_not_know_the_reference(tmp_path, judges, encoder):
    folder = folder_of(tmp_path / "images", [(UNIFONT, PENGUIN, PENGUIN)] * 2)
    known, unknown = (draw(tmp_path / f"{name}.png", UNIFONT, RABBIT) for name in ("known", "unknown"))
    scores = evaluate(folder, None, None, known, "rabbit face", judges=judges, encoder=encoder)
    assert scores["concept_top1"] == 1.0 and scores["leakage"] == 0.0
    scores = evaluate(folder, None, None, unknown, "penguin", judges=judges, encoder=encoder)
    assert scores["concept_top1"] is None and scores["leakage"] is None and scores["style_cosine"] is not None
    assert "does not recognise the reference" in scores["notes"][0]
    assert evaluate(folder, "unifont", None, unknown, "penguin", judges=judges)["concept_top1"] == 1.0


def test_evaluate_images_of_another_base_are_not_judged(tmp_path, judges, encoder, monkeypatch):
    monkeypatch.setattr(Judges, "load", lambda: judges)
    folder = folder_of(tmp_path / "images", [(UNIFONT, PENGUIN, PENGUIN)], base="black-forest-labs/FLUX.1-dev")
    reference = draw(tmp_path / "ref.png", UNIFONT, RABBIT)
    scores = evaluate(folder, reference=reference)
    assert scores["style_cosine"] is None and scores["concept_top1"] is None and scores["clip_t"] is None
    assert "--clip / --dino" in scores["notes"][0] and scores["encoder"] is None
    scores = evaluate(folder, reference=reference, encoder=encoder, dino=encoder)
    assert scores["clip_t"] is not None and scores["dino_i_reference"] == scores["clip_i_reference"] is not None
    assert evaluate(folder, reference=reference, judges=judges, encoder=encoder)["concept_top1"] == 1.0


def test_evaluate_similarities_lie_between_unrelated_images_and_crops_of_the_reference(tmp_path, judges, encoder):
    reference = draw(tmp_path / "ref.png", UNIFONT, PENGUIN)
    folder = folder_of(tmp_path / "images", [(UNIFONT, PENGUIN, PENGUIN)])
    scores = evaluate(folder, reference=reference, judges=judges, encoder=encoder)
    limits = scores["ranges"]["style_cosine"]
    assert set(scores["ranges"]) == {"style_cosine", "clip_i_reference"} and limits["floor"] < limits["ceiling"]
    expected = (scores["style_cosine"] - limits["floor"]) / (limits["ceiling"] - limits["floor"])
    assert scores["reference_style"] == pytest.approx(expected)
    assert all(row["style_judged"] is None for row in scores["images"])


def test_true_pictures_are_on_the_given_ground():
    style, concept = META["style_names"].index("unifont"), LABELS.index("cat")
    white, blue = (true_pictures(style, [concept], ground)[concept] for ground in ((255, 255, 255), (0, 0, 200)))
    assert white.getpixel((0, 0)) == (255, 255, 255) and blue.getpixel((0, 0)) == (0, 0, 200)


def test_evaluate_with_encoders_names_each_with_its_version(tmp_path, judges, truths):
    folder = folder_of(tmp_path / "a", [(UNIFONT, PENGUIN, PENGUIN)] * 2)
    base = folder_of(tmp_path / "b", [(UNIFONT, FROG, PENGUIN)] * 2)
    chosen = ["style-judge", "concept-judge"]
    found = evaluate(
        folder, base_images=base, reference=folder / "0000.png", judges=judges, encoder=None, encoders=chosen
    )
    assert list(found["encoders"]) == chosen and len(found["encoders"]["style-judge"]["version"]) == 12
    style = found["encoders"]["style-judge"]
    assert style["scores"]["reference"] == {"mean": pytest.approx(1), "interval": pytest.approx([1, 1]), "n": 2}
    assert style["scores"]["diversity"]["mean"] == pytest.approx(0, abs=1e-5) and style["base"]["reference"]["n"] == 2
    assert found["images"][1]["encoders"]["concept-judge"]["reward"] is not None
    assert found["near_copy"] == 0, "one colour has no composition"
    with pytest.raises(UserError, match="csd needs a source"):
        evaluate(folder, judges=judges, encoder=None, encoders=["csd"])
