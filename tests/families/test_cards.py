"""Cards and configurations of bases, before loading."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from impasto.bases import cards, loader
from impasto.bases import hub as bases_hub
from impasto.config import make_config, resolve
from impasto.errors import UserError
from impasto.execution import memory
from impasto.objectives import weighting


def cached(root, base, **content):
    """Write JSON files of a hub id to the hub's cache; "/" in file names is written "__"."""
    folder = root / f"models--{base.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, values in content.items():
        file = folder / "snapshots" / ("0" * 40) / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


def test_card_of_hub_id_uses_pipeline_class(tmp_path, monkeypatch):
    """From the hub's cache, else from the hub by one request; warns if neither is available."""
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
    assert resolve(base="owner/dreamy").data.size == 512 and not asked
    assert loader.schedule("owner/dreamy").range[0] == pytest.approx(-5.36, abs=0.01)
    assert resolve(base="owner/xl").data.size == 1024 and loader.schedule("owner/xl").range[0] > -6
    assert asked == [("owner/xl", "model_index.json")]
    assert resolve(base="owner/unknown") == resolve(base="owner/unknown")
    with pytest.warns(UserWarning, match=r"'owner/unknown' is not on disk.*family, its size"):
        assert loader.schedule("owner/unknown").range[1] == float("inf")
    assert asked[1:] == [("owner/unknown", "model_index.json")]  # and not again
    assert resolve(base="../nowhere") and bases_hub.part_config("../nowhere", "model_index.json") == {}
    cached(tmp_path / "hub", "owner/other", model_index={"_class_name": "PixArtAlphaPipeline"})
    with pytest.raises(UserError, match="is a PixArtAlphaPipeline, which impasto does not support"):
        loader.schedule("owner/other")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache and a fake hub with the files of `folder`; `asked`: the requested files."""

    def download(base, name):
        fake.asked.append(name)
        if not fake.folder or not (fake.folder / name).is_file():
            raise OSError("no network")
        return str(fake.folder / name)

    fake = SimpleNamespace(folder=None, asked=[])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    bases_hub.hub_file.cache_clear()
    yield fake
    bases_hub.hub_file.cache_clear()


def configs(folder):
    """All of a folder's configurations, as `cached` takes them."""
    files = [folder / "model_index.json", *folder.glob("*/config.json"), *folder.glob("scheduler/*.json")]
    names = [file.relative_to(folder).with_suffix("").as_posix().replace("/", "__") for file in files]
    return {name: json.loads(file.read_text()) for name, file in zip(names, files, strict=True)}


@pytest.mark.parametrize("where", ["cache", "hub", "both"])
def test_load_config_only_of_hub_id_matches_folder(tiny_base, tmp_path, hub, where):
    """Only files that are not cached are requested from the hub."""
    content, hub.folder = configs(tiny_base), tiny_base
    if where != "hub":
        content = content if where == "cache" else {"model_index": content["model_index"]}
        cached(tmp_path / "hub", "owner/tiny", **content)
    found, whole = loader.load_config_only("owner/tiny"), loader.load(str(tiny_base), device="cpu")
    assert type(found) is type(whole) and (found.device, found.precision) == ("cpu", "fp32")
    assert not list(found.folder.rglob("*.safetensors"))
    assert (found.unit, found.patch, found.guided_by) == (whole.unit, whole.patch, whole.guided_by)
    assert found.schedule.range == whole.schedule.range
    config = make_config(size=16, rank=4, weighting="min-snr")
    sizes = []
    for family in (found, whole):
        size = memory.size_of(memory.meta_model(family), family, config, 4)
        sizes.append(memory.with_clips(size, memory.meta_clips(family), 4))
    assert sizes[0] == sizes[1] and sizes[0].clip_weights > 0
    if whole.part == "unet":
        lam = torch.linspace(-4, 4, 5)
        assert torch.equal(weighting.build(config.objective, found)(lam), weighting.build(config.objective, whole)(lam))
    assert (not hub.asked) == (where == "cache") and ("model_index.json" in hub.asked) == (where == "hub")
    assert len(hub.asked) == len(set(hub.asked))


def test_load_config_only_of_incomplete_hub_id_returns_none(tiny_sd15, tmp_path, hub):
    """Missing files are requested once; an unsupported class raises."""
    content = {name: config for name, config in configs(tiny_sd15).items() if not name.startswith("vae")}
    cached(tmp_path / "hub", "owner/part", **content)
    cached(tmp_path / "hub", "owner/other", model_index={"_class_name": "PixArtAlphaPipeline"})
    assert loader.load_config_only("owner/part") is None and loader.load_config_only("owner/unknown") is None
    assert loader.load_config_only("owner/part") is None and hub.asked == ["vae/config.json", "model_index.json"]
    with pytest.raises(UserError, match="is a PixArtAlphaPipeline, which impasto does not support"):
        loader.load_config_only("owner/other")
    with pytest.raises(UserError, match="unknown base 'mini-sd4'"):
        loader.load_config_only("mini-sd4")


def test_card_of_flux_without_guidance_is_schnells(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for guided, steps, length in ((True, 28, "512"), (False, 4, "256")):
        index, config = {"_class_name": "FluxPipeline"}, {"guidance_embeds": guided}
        cached(tmp_path / "hub", f"owner/{guided}", model_index=index, transformer__config=config)
        folder = tmp_path / "hub" / f"models--owner--{guided}" / "snapshots" / ("0" * 40)
        for base in (str(folder), f"owner/{guided}"):
            card = cards.card(base)
            assert (card["generate"]["steps"], list(card["text_lengths"])) == (steps, [length])
            assert card["license"] == "other"


def own(folder, **content):
    """A folder with SD1.5's pipeline class and an `impasto.json`."""
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (folder / "impasto.json").write_text(json.dumps(content))
    return str(folder)


def test_card_of_folder_merges_partial_tables(tmp_path):
    """Missing keys come from the class's card, or from that of the named base."""
    card = cards.card(own(tmp_path / "a", generate={"steps": 3}, train={"lr": 2e-5}))
    assert card["generate"] == {"steps": 3, "guidance": 7.5, "batch": 1}
    assert card["train"] == {"lr": 2e-5, "steps": 300, "batch": 1, "accumulate": 4}
    config = resolve(base=own(tmp_path / "a", name="mini-sd15", train={"lr": 2e-5}))
    assert (config.optim.lr, config.optim.steps, config.optim.batch) == (2e-5, 150, 8)
    assert cards.cards()["StableDiffusionPipeline"]["generate"]["steps"] == 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"generate": 5}, "generate must be a table, not 5"),
        ({"generate": None}, "generate must be a table, not None"),
        ({"generate": {"guidance": "7"}}, "generate.guidance must be float, not '7'"),
        ({"generate": {"steps": True}}, "generate.steps must be int, not True"),
        ({"train": [1]}, r"train must be a table, not \[1\]"),
        ({"recipes": []}, r"recipes must be a table, not \[\]"),
        ({"recipes": {"style-friendly": 1}}, "recipes.style-friendly must be a table, not 1"),
        ({"size": "512"}, "size must be int, not '512'"),
        ({"betas": 1}, "betas must be a list, not 1"),
        ({"prior_prompts": "a cat"}, "prior_prompts must be a list"),
        ({"name": 5}, "name must be str, not 5"),
        ({"text_lengths": {}}, "text_lengths must be numbers of tokens with shares above 0"),
        ({"text_lengths": {"x": 1}}, "text_lengths must be numbers of tokens"),
        ({"text_lengths": {"1": float("nan")}}, "text_lengths must be numbers of tokens"),
        ({"text_lengths": {"1": "x"}}, "text_lengths.1 must be float, not 'x'"),
    ],
    ids=str,
)
def test_folder_card_with_wrong_type_raises(tmp_path, content, message):
    base = own(tmp_path / "a", **content)
    with pytest.raises(UserError, match=rf"a/impasto\.json: {message}"):
        cards.card(base)


def test_folder_card_accepts_all_known_cards(tmp_path):
    """The cards of all bases; unknown keys are ignored."""
    for known in cards.cards().values():
        assert cards.card(own(tmp_path / "a", **known, newer=[1])).items() >= known.items()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": {"lr": "x"}}, "lr must be float, not 'x'"),
        ({"recipes": {"style-friendly": {"steps": "x"}}}, "steps must be int"),
        ({"train": {"stops": 3}}, "unknown key 'stops': did you mean 'steps'"),
    ],
    ids=str,
)
def test_resolve_with_wrong_type_in_folder_card_raises(tmp_path, content, message):
    with pytest.raises(UserError, match=f"card of '.*': {message}"):
        resolve("style-friendly", own(tmp_path / "a", **content))
