"""Styles by their names on the Hub, without a network."""

import shutil

import huggingface_hub
import pytest
from PIL import Image
from safetensors.torch import load_file

from impasto.cli.checks import check_styles
from impasto.config import change, resolve
from impasto.errors import UserError
from impasto.generation import generate_folder
from impasto.sampling.config import GenerateConfig
from impasto.styles.hub_download import hub_name, resolve_hub
from impasto.training.train import train


@pytest.fixture(scope="module")
def trained(tiny_sd3, picture, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "ink"
    keys = {"image": [str(picture)], "caption": ["a rocket in ink style"], "rank": 2, "lr": 0.05, "batch": 1}
    config = resolve("style-friendly", str(tiny_sd3), out=str(out), steps=2, preview=False, tensorboard=False, **keys)
    train(config)
    return config


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository owner/name: the snapshot that the Hub's cache holds."""
    snapshot = tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)

    def download(repo, allow_patterns):
        if repo != "owner/name":
            raise OSError(f"404 Client Error\nRepository Not Found for {repo}")
        assert "*.safetensors" in allow_patterns
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_generate_with_a_style_of_the_hub_is_as_with_its_folder(hub, trained, tmp_path):
    shutil.copytree(trained.out, hub, dirs_exist_ok=True, ignore=shutil.ignore_patterns("state"))
    images, seed = {}, -1
    for style in ("owner/name:0.5", f"{trained.out}:0.5"):
        config = GenerateConfig(
            base=trained.base,
            style=(style,),
            prompt=("a cat",),
            size="16x24",
            steps=2,
            seed=seed,
            out=tmp_path / "out",
        )
        result = generate_folder(config)
        seed = result["seed"]
        image = Image.open(tmp_path / "out" / result["images"][0])
        images[style], meta = image.tobytes(), image.info["impasto"]
        assert image.size == (16, 24) and f'"seed": {seed}' in meta and '"width": 16, "height": 24' in meta
        assert ('"path": "owner/name"' in meta) == (style == "owner/name:0.5")
    assert len(set(images.values())) == 1 and seed > 0


def test_files_of_a_repository_are_chosen_by_name(hub):
    with pytest.raises(UserError, match=r"'owner/name': owner/name on the Hub holds no LoRA"):
        resolve_hub("owner/name")
    (hub / "a.safetensors").touch()
    assert resolve_hub("owner/name:0.8") == f"{hub / 'a.safetensors'}:0.8"
    (hub / "b.safetensors").touch()
    with pytest.raises(
        UserError, match=r"holds a.safetensors, b.safetensors: name one, as in owner/name/a.safetensors"
    ):
        resolve_hub("owner/name")
    assert resolve_hub("owner/name/b.safetensors") == str(hub / "b.safetensors")
    with pytest.raises(
        UserError, match=r"no such file or folder, and it cannot be had from the Hub \(404 Client Error\)"
    ):
        resolve_hub("owner/other")


def test_names_of_folders_here_are_not_of_the_hub(hub, tmp_path):
    (tmp_path / "runs").mkdir()
    for style in ("runs/nean", "runs/nean:0.8", "./x", "nean", "me/neon.safetensors", "a/b/c", "a/b@100"):
        assert hub_name(style) is None and resolve_hub(style) == style
    check_styles(["owner/name:0.8"], hub=True)
    with pytest.raises(UserError, match="style 'runs/nean' cannot be loaded: no such file or folder"):
        check_styles(["runs/nean:0.8"], hub=True)


def test_training_starts_from_a_style(trained, tmp_path):
    """At a learning rate of almost 0 the style comes out again, also at a larger rank and another alpha."""
    new = change(trained, out=tmp_path / "new", init_from=trained.out, rank=3, alpha=12.0, lr=1e-30, steps=1)
    train(new)
    old, found = (load_file(one.out / "pytorch_lora_weights.safetensors") for one in (trained, new))
    for name in (name for name in old if "lora_A" in name):
        layer = name.replace("lora_A", "lora_{}")
        a, b = (found[layer.format(half)] for half in "AB")
        a_s, b_s = (old[layer.format(half)] for half in "AB")
        assert (4 * b @ a).allclose(b_s @ a_s, atol=1e-7)
    assert any(tensor.any() for name, tensor in old.items() if "lora_B" in name)
    style = (new.out / "style.json").read_text()
    assert '"style": "ink"' in style and "sha256" in style and str(tmp_path) not in style.replace(trained.base, "")
    assert "init_sha256" in (new.out / "recipe.toml").read_text()
    assert generate_folder(
        GenerateConfig(base=new.base, style=(str(new.out),), prompt=("a",), steps=1, out=tmp_path / "o")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 1}, r"has rank 2 and this run 1: give --rank 2, or make it smaller"),
        ({"targets": ("to_q",)}, r"has a LoRA on .*, which --targets leaves out"),
        ({"init_from": "nowhere"}, "style 'nowhere' cannot be loaded: no such file or folder"),
        ({"adapter": {"name": "full-rank"}}, "--init-from starts a LoRA"),
    ],
    ids=str,
)
def test_styles_that_do_not_fit_are_refused_before_training(trained, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(change(trained, **{"out": tmp_path / "new", "init_from": trained.out} | changes))
    assert not (tmp_path / "new").exists()
