"""The paper's protocol, cut down, on a tiny base with tiny random encoders: the sizes are small, nothing else."""

import json
import pickle
import re

import pytest
import torch
from PIL import Image

from impasto.errors import UserError
from impasto.evaluation import load_encoder
from impasto.reproduce import campaign as module
from impasto.reproduce import paper, reproduce
from impasto.reproduce.cells import FILE, read_all
from impasto.reproduce.paper import STYLES, SUBJECTS, PaperWorld, find


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two references, called by their numbers."""
    folder = tmp_path_factory.mktemp("references")
    for i, colour in enumerate(("teal", "orange")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    from tiny import encoder_folders

    folders = {name: tmp_path_factory.mktemp(name) for name in ("clip", "dino")}
    encoder_folders(**folders)
    return folders


def test_styles_and_subjects_match_paper():
    assert len(STYLES) == 18 and len(set(STYLES)) == 18 and len(SUBJECTS) == 23 and len(set(SUBJECTS)) == 23
    references, subjects, count = paper.SIZES["full"]
    assert references * subjects * count == 828
    assert sum(not style.endswith("style") for _, style in STYLES) == 2  # the smoke wave and the wooden sculpture
    for subject in SUBJECTS:
        article, noun = subject.split(" ", 1)
        assert article in ("A", "An", "The")
        assert (article == "An") == bool(re.match(r"[AEIOUaeio]|F1", noun)) or article == "The"


@pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters
def test_paper_campaign_runs(tiny_sd3, tmp_path, pictures, encoders, monkeypatch):
    monkeypatch.setitem(paper.SIZES, "smoke", (2, 2, 2))
    world = PaperWorld(pictures, encoders["clip"], encoders["dino"])
    result = reproduce(claim=["S6"], base=str(tiny_sd3), out=tmp_path, world=world, log=lambda line: None)
    assert result["failed"] == [] and result["verdicts"] == {"S6": "undecided"}
    cells = list(read_all(tmp_path / FILE).values())
    assert len(cells) == result["run"] == 2 * 2  # both streams and one, two references
    for cell in cells:
        assert set(cell["scores"]) == {"dino", "clip_i", "clip_t"} and all(
            -1 <= v <= 1 for v in cell["scores"].values()
        )
        assert cell["spec"]["count"] == 2 and cell["spec"]["prompts"][0].startswith(
            "An Opera house in Sydney in watercolor"
        )
    captions = {cell["spec"]["caption"] for cell in cells}
    assert captions == {"house in watercolor painting style", "cat in watercolor painting style"}
    from impasto.files import cache_dir

    folder = next(cache_dir("reproduce").rglob("image-stream--00-house*"))
    result = [json.loads(Image.open(f).info["impasto"]) for f in sorted((folder / "images").glob("*.png"))]
    assert (
        len(result) == 4 and len({one["prompt"] for one in result}) == 2 and len({one["seed"] for one in result}) == 4
    )
    one = next(c for c in cells if c["arm"] == "image stream" and c["unit"].startswith("00"))
    clip, dino = load_encoder(encoders["clip"]), load_encoder(encoders["dino"])
    made = [Image.open(f).convert("RGB") for f in sorted((folder / "images").glob("*.png"))]
    reference = [Image.open(pictures / "00.png")]
    assert one["scores"]["dino"] == pytest.approx(
        (dino.images(made) @ dino.images(reference).T).mean().item(), abs=1e-5
    )
    texts = clip.texts([t["prompt"] for t in result])
    assert one["scores"]["clip_t"] == pytest.approx((clip.images(made) * texts).sum(1).mean().item(), abs=1e-5)
    page = (tmp_path / "README.md").read_text()
    assert "DINO" in page and "matched" not in page and "S8" not in page


def test_paper_claims_exclude_ours(tiny_sd3, pictures, encoders):
    world = PaperWorld(pictures, encoders["clip"], encoders["dino"])
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), None, world=world)
    assert str(campaign.out).startswith("docs/results/style-friendly-paper-")
    own = module.default_out("style-friendly", "mini-sd3", world.name)
    assert str(own) == "docs/results/style-friendly-paper"
    assert "S8" not in {c.id for c in campaign.claims} and len(campaign.claims) >= 8
    assert all("matched" not in arm for claim in campaign.claims for arm in claim.arms)
    arms = {claim.id: claim.arms for claim in campaign.claims}
    assert arms["S1"] == ("style-friendly", "sd3", "prompt") and "mu +0" in arms["S2"]
    assert not {"dco, beta 100", "dco, beta 1000", "dco, sum"} & set(arms["S9"])
    (first,) = (claim for claim in campaign.claims if claim.id == "S1")
    assert [reading.name for reading in first.readings] == ["as published", "as published, at equal text"]


def test_paper_world_pickles_without_encoders(pictures, encoders):
    world = PaperWorld(pictures, encoders["clip"], encoders["dino"])
    hashes = world.instruments()
    assert len(pickle.dumps(world)) < 5000 and pickle.loads(pickle.dumps(world)).instruments() == hashes
    assert hashes["clip"] != hashes["dino"] and len(hashes["clip"]) == 64
    changed = load_encoder(encoders["dino"])
    with torch.no_grad():
        next(iter(changed.model.parameters())).add_(1)
    other = paper.Encoder("another", changed.model, changed.processor, None)
    assert other.hash != hashes["dino"]


def test_find_by_captions(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "captions.txt").write_text(
        "b.png: house | watercolor painting\na.png: cat | watercolor painting style\n"
    )
    assert {i: f.name for i, f in find(tmp_path, 2).items()} == {0: "b.png", 1: "a.png"}
    (tmp_path / "captions.txt").write_text("b.png: dog | crayon\n")
    with pytest.raises(UserError, match=r"line 1: 'dog \| crayon' is not one of StyleDrop's 18 references"):
        find(tmp_path, 1)
    (tmp_path / "captions.txt").write_text("a.png: house | watercolor painting\nb.png: house | watercolor painting\n")
    with pytest.raises(UserError, match=r"line 2: a\.png is that reference already"):
        find(tmp_path, 1)
    (tmp_path / "captions.txt").write_bytes(b"a.png: h\xf6use | watercolor\n")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        find(tmp_path, 1)
    (tmp_path / "captions.txt").write_text("c.png: house | watercolor painting\n")
    with pytest.raises(UserError, match=r"'c.png' is not in the same folder"):
        find(tmp_path, 1)


def test_paper_world_with_bad_input_raises(tmp_path, pictures, encoders, tiny_sd3):
    with pytest.raises(UserError, match=r"lacks the references 02 \(flowers \| watercolor painting style\); 03"):
        find(pictures, 18)
    with pytest.raises(UserError, match="is not a folder"):
        find(tmp_path / "none", 1)
    with pytest.raises(UserError, match="--protocol paper needs --references"):
        reproduce(base=str(tiny_sd3), protocol="paper")
    with pytest.raises(UserError, match="need --protocol paper"):
        reproduce(base=str(tiny_sd3), references=pictures)
    with pytest.raises(UserError, match="unknown protocol 'papers': did you mean 'paper'"):
        reproduce(base=str(tiny_sd3), protocol="papers")
    world = PaperWorld(pictures, encoders["dino"], encoders["dino"], limits=(2, 2))
    with pytest.raises(UserError, match="has no text tower: give --clip a CLIP"):  # before anything is trained
        reproduce(claim=["S6"], base=str(tiny_sd3), out=tmp_path, world=world, dry_run=True)
    (tmp_path / "refs").mkdir()
    for index in range(3):
        (tmp_path / "refs" / f"{index:02d}.png").write_text("not a picture")
    world = PaperWorld(tmp_path / "refs", encoders["clip"], encoders["dino"])
    with pytest.raises(UserError, match="is not a picture of a known format"):
        reproduce(claim=["S6"], base=str(tiny_sd3), out=tmp_path, world=world, dry_run=True)
