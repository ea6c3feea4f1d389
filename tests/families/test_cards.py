"""What is known of a base before it is loaded."""

import json

import huggingface_hub
import pytest
from huggingface_hub import constants

from impasto import families
from impasto.config import resolve
from impasto.errors import UserError


def cached(root, base, **content):
    """A hub id in the hub's cache; content: JSON files, "/" written "__"."""
    folder = root / f"models--{base.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, values in content.items():
        file = folder / "snapshots" / ("0" * 40) / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


def test_a_hub_id_goes_by_its_class(tmp_path, monkeypatch):
    """As the hub's cache tells it, else the hub, which is asked once; where neither does, that is said."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def download(base, name):
        asked.append((base, name))
        if base != "owner/xl":
            raise OSError("no network")
        (tmp_path / "fetched.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
        return str(tmp_path / "fetched.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    cached(tmp_path / "hub", "owner/dreamy", model_index={"_class_name": "StableDiffusionPipeline"})
    assert resolve(base="owner/dreamy").size == 512 and not asked
    assert families.schedule("owner/dreamy").range[0] == pytest.approx(-5.36, abs=0.01)
    assert resolve(base="owner/xl").size == 1024 and families.schedule("owner/xl").range[0] > -6
    assert asked == [("owner/xl", "model_index.json")]
    assert resolve(base="owner/unknown") == resolve(base="owner/unknown")
    with pytest.warns(UserWarning, match=r"'owner/unknown' is not here.*family, its size"):
        assert families.schedule("owner/unknown").range[1] == float("inf")
    assert asked[1:] == [("owner/unknown", "model_index.json")]  # and not again
    assert resolve(base="../nowhere") and families.part_config("../nowhere", "model_index.json") == {}
    cached(tmp_path / "hub", "owner/other", model_index={"_class_name": "PixArtAlphaPipeline"})
    with pytest.raises(UserError, match="is a PixArtAlphaPipeline, which impasto does not speak"):
        families.schedule("owner/other")


def test_flux_without_guidance_goes_by_schnells_card(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for guided, steps, length in ((True, 28, "512"), (False, 4, "256")):
        index, config = {"_class_name": "FluxPipeline"}, {"guidance_embeds": guided}
        cached(tmp_path / "hub", f"owner/{guided}", model_index=index, transformer__config=config)
        folder = tmp_path / "hub" / f"models--owner--{guided}" / "snapshots" / ("0" * 40)
        for base in (str(folder), f"owner/{guided}"):
            card = families.card(base)
            assert (card["generate"]["steps"], list(card["text_lengths"])) == (steps, [length])
            assert card["license"] == "other"
