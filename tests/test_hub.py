"""Publishing, against a local fake of the Hub's HTTP API: what is sent, and one line for everything that goes wrong."""

import base64
import io
import json
import shlex
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import save_file

from impasto.bases.loader import load
from impasto.cli import main as cli
from impasto.config import flatten, resolve
from impasto.errors import UserError
from impasto.sampling.png import save_png
from impasto.styles.card import write_card
from impasto.styles.convert import export_style, merge_styles, resize_style
from impasto.styles.hub import check_access, hub_card, publish
from impasto.styles.metadata import About
from impasto.styles.weights import WEIGHTS
from impasto.training.train import train

RECIPE = 'base = "{base}"\nimage = ["/home/me/a.png"]\ncaption = ["a rocket in ink style"]\nnoise = "uniform"\n'
CARD = """---
base_model: "{base}"
license: "apache-2.0"
widget: [{{"text": "a cat in ink style", "output": {{"url": "previews/0.png"}}}}]
---
# ink

A style for `{base}`.

pipe = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.bfloat16)
pipe.load_lora_weights("/home/me/ink", weight_name="pytorch_lora_weights.safetensors")

impasto generate --base {base} --style /home/me/ink --prompt "a cat"
A strength below 1: `--style /home/me/ink:0.7`.
"""
PICTURE = Image.effect_noise((16, 16), 50).convert("RGB")


def drawn(base, *styles, **more):
    """What a preview tells."""
    about = {
        "prompt": "a cat",
        "negative_prompt": "",
        "seed": 0,
        "steps": 2,
        "guidance": 4.0,
        "width": 16,
        "height": 16,
    }
    about |= {"styles": [{"path": path, "strength": 1.0, "hash": None, "step": 6} for path in styles]}
    return about | {"base": str(base), "base_hash": "b0" * 32, "version": "1"} | more


def picture_of(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


class Hub(BaseHTTPRequestHandler):
    """Repositories, their files, and what was asked; the token "good" may write to "me"."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        token = self.headers.get("Authorization")
        if token != "Bearer good":
            return self.reply({"error": "Invalid username or password."}, 401)
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            if asked["organization"] != "me":
                return self.reply({"error": "You don't have the rights"}, 403)
            self.server.repos[f"me/{asked['name']}"] = asked
            return self.reply({"url": f"{self.server.url}/me/{asked['name']}", "id": f"me/{asked['name']}"})
        if "/preupload/" in self.path:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "regular" if f["path"].endswith(".md") else "lfs",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.reply({"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            upload = lambda oid: {"upload": {"href": f"{self.server.url}/upload/{oid}"}}  # noqa: E731
            found = [o | {"actions": upload(o["oid"])} for o in json.loads(body)["objects"]]
            return self.reply({"transfer": "basic", "objects": found})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                self.server.files[line["value"]["path"]] = self.server.blobs[line["value"]["oid"]]
        return self.reply({"commitUrl": f"{self.server.url}/me/ink/commit/abc", "commitOid": "abc", "hookOutput": ""})

    def do_GET(self):
        if self.headers.get("Authorization") not in ("Bearer good", "Bearer reads"):
            return self.reply({"error": "Invalid username or password."}, 401)
        if self.path != "/api/whoami-v2":
            return self.reply({"error": "Repository not found"}, 404)
        role = "read" if self.headers["Authorization"] == "Bearer reads" else "write"
        orgs = [{"name": "ours", "roleInOrg": "write"}, {"name": "seen", "roleInOrg": "read"}]
        return self.reply({"name": "me", "orgs": orgs, "auth": {"accessToken": {"role": role}}})

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def reply(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.files, server.blobs = {}, {}, {}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("impasto.bases.hub.hub_file", lambda base, name: None)  # it has no bases; without retries
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def style(tmp_path, tiny_flux):
    folder = tmp_path / "ink"
    (folder / "previews").mkdir(parents=True)
    save_png(PICTURE, drawn(tiny_flux, "/home/me/ink"), folder / "previews" / "0.png")
    name = "transformer.single_transformer_blocks.0.proj_out"
    halves = {f"{name}.lora_A.weight": torch.randn(4, 6), f"{name}.lora_B.weight": torch.randn(5, 4)}
    save_file(halves, folder / WEIGHTS)
    (folder / "recipe.toml").write_text(RECIPE.format(base=tiny_flux) + 'out = "/home/me/ink"\n')
    (folder / "README.md").write_text(CARD.format(base=tiny_flux))
    return folder


def test_the_repository_holds_weights_card_and_pictures(hub, style, tiny_flux, tmp_path):
    result = publish(style, "me/ink", private=True)
    assert result == {"url": f"{hub.url}/me/ink", "commit": "abc", "files": ["README.md", "previews/0.png", WEIGHTS]}
    assert sorted(hub.files) == result["files"]
    assert hub.repos["me/ink"].get("visibility") == "private" or hub.repos["me/ink"].get("private") is True
    card = hub.files["README.md"].decode()
    assert 'load_lora_weights("me/ink", weight_name=' in card and "--style ink" in card and "`--style ink:0.7`" in card
    (tmp_path / "down.safetensors").write_bytes(hub.files[WEIGHTS])
    with safe_open(tmp_path / "down.safetensors", "pt") as file:
        said = str(file.metadata()) + card + str(picture_of(hub.files["previews/0.png"]).info)
    assert "/home" not in said and str(tiny_flux) not in said and "/tmp" not in said
    assert "base_model" not in card and "a rocket in ink style" in said


def test_another_format_lies_beside(hub, style):
    assert publish(style, "me/ink", "comfyui")["files"][1:3] == ["ink-comfyui.safetensors", "previews/0.png"]
    assert "`ink-comfyui.safetensors`" in hub.files["README.md"].decode()


def test_a_base_of_any_name(style, tmp_path):
    """What stands for this machine's folder is not read as a pattern."""
    base = tmp_path / "模型 \\g<1>"
    base.mkdir()
    (style / "README.md").write_text(CARD.format(base="BASE"))
    card = hub_card(About(style / WEIGHTS), str(base), "flux", "me/ink", [])
    assert (
        "from_pretrained(" + json.dumps(base.name, ensure_ascii=False) in card
        and f"--base {shlex.quote(base.name)} " in card
    )


def test_no_word_of_this_machine_is_left(tmp_path, tiny_flux):
    """Of a card as it is written: spaces in all names, components of one's own, exported for the base's name."""
    model, folder, parts = tmp_path / "my models" / "secret", tmp_path / "my styles" / "ink", tmp_path / "my parts"
    shutil.copytree(tiny_flux, model)
    parts.mkdir()
    folder.mkdir(parents=True)
    caption = 'a `cat` in $INK "style"'
    given = {"image": ["a.png"], "caption": [caption], "out": str(folder), "components": str(parts), "size": 16}
    config = resolve("style-friendly", str(model), **given)
    write_card(config, load(str(model), device="cpu"), [], "1")
    card = (folder / "README.md").read_text(encoding="utf-8")
    command = next(shlex.split(line) for line in card.splitlines() if line.startswith("impasto generate"))
    assert command[2:10] == [
        *("--base", str(model), "--components", str(parts), "--style", str(folder), "--prompt", caption)
    ]
    told = About(folder / WEIGHTS, recipe=flatten(config))
    public = hub_card(told, "stabilityai/stable-diffusion-3.5-medium", "flux", "me/ink", [])
    assert 'base_model: "stabilityai/stable-diffusion-3.5-medium"' in public and "components" not in public
    command = next(shlex.split(line) for line in public.splitlines() if line.startswith("impasto generate"))
    assert command[2:8] == [
        *("--base", "stabilityai/stable-diffusion-3.5-medium", "--style", "ink", "--prompt", caption)
    ]
    assert "`--style ink:0.7`" in public and "A style for `stabilityai/stable-diffusion-3.5-medium`" in public
    assert not any(word in public for word in (str(tmp_path), "secret", "my "))


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("ink", "good", "it is owner/name"),
        ("me/ink", "", "there is no token for the Hub"),
        ("me/ink", "bad", "the Hub does not accept the token"),
        ("you/ink", "good", "the token may not write to 'you/ink'"),
    ],
)
def test_what_goes_wrong(hub, style, monkeypatch, tmp_path, repo, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=message) as error:
        publish(style, repo)
    assert "\n" not in str(error.value) and not hub.files


def test_no_network(hub, style, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the Hub \(http://127.0.0.1:9\) cannot be reached"):
        publish(style, "me/ink")


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("ink", "good", "it is owner/name"),
        ("me/ink", "", "there is no token for the Hub"),
        ("me/ink", "bad", "the Hub does not accept the token"),
        ("me/ink", "reads", "the token may not write to 'me/ink'"),
        ("you/ink", "good", "the token may not write to 'you/ink'"),
        ("seen/ink", "good", "the token may not write to 'seen/ink'"),
    ],
)
def test_access_is_checked_before_a_training(hub, monkeypatch, tmp_path, picture, tiny_sd15, repo, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    about = {"image": [str(picture)], "caption": ["a cat in ink style"], "out": str(tmp_path / "run")}
    with pytest.raises(UserError, match=message):
        train(resolve("style-friendly", str(tiny_sd15), push_to_hub=repo, **about))
    assert not (tmp_path / "run").exists()


def test_private_says_nothing_without_a_repository(tmp_path, monkeypatch, capsys):
    """Neither in a training nor in an export may a style become public by a forgotten flag."""
    with pytest.raises(UserError, match="hub_private goes with push_to_hub"):
        train(resolve("style-friendly", hub_private=True, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["impasto", "export", str(tmp_path), "--hub-private"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "--hub-private goes with --push-to-hub" in capsys.readouterr().err


def test_access_to_what_is_ones_own(hub):
    check_access("me/ink")
    check_access("ours/ink")


def test_a_training_that_publishes(hub, tmp_path, picture, tiny_sd15):
    about = {"image": [str(picture)], "caption": ["a cat in ink style"], "out": str(tmp_path / "ink"), "steps": 1}
    config = resolve("style-friendly", str(tiny_sd15), push_to_hub="me/ink", hub_private=True, **about)
    assert train(config)["hub"] == f"{hub.url}/me/ink"
    assert set(hub.files) == {"README.md", WEIGHTS, *(f"previews/step-000001-{i}.png" for i in range(4))}
    for i in range(1, 4):
        del hub.files[f"previews/step-000001-{i}.png"]
    own, public = Image.open(tmp_path / "ink" / "previews" / "step-000001-0.png"), picture_of(hub.files.popitem()[1])
    assert str(tmp_path) in own.info["impasto"] and (np.asarray(own) == np.asarray(public)).all()
    told = json.loads(public.info["impasto"])
    assert told["styles"][0]["path"] == "ink" and told["base"] == tiny_sd15.name and "/" not in str(public.info)
    assert "push_to_hub" not in (tmp_path / "ink" / "recipe.toml").read_text()
    hub.files.clear()
    assert train(config)["resumed_from"] == 1 and WEIGHTS in hub.files  # the same command publishes again


def test_pictures_name_no_folder(hub, style, tiny_flux, tmp_path):
    """Neither of the style, of others, of the base, nor of a reference; pixels and settings stay."""
    aligned = {"reference": "/home/me/secret/cat.png", "hash": "c0", "caption": "a cat", "scale": 1.0}
    file = style / "previews" / "0.png"
    save_png(PICTURE, drawn(tiny_flux, "/home/me/ink", "/home/me/neon", aligned=aligned), file)
    before = file.read_bytes()
    publish(style, "me/wet-ink", base="black-forest-labs/FLUX.1-dev")
    public = picture_of(hub.files["previews/0.png"])
    assert (np.asarray(public) == np.asarray(PICTURE)).all() and file.read_bytes() == before
    told = json.loads(public.info["impasto"])
    assert [one["path"] for one in told["styles"]] == ["wet-ink", "neon"] and told["aligned"]["reference"] == "cat.png"
    assert told["base"] == "black-forest-labs/FLUX.1-dev" and told["seed"] == 0 and told["aligned"]["hash"] == "c0"
    assert "<lora:wet-ink:1>" in public.info["parameters"]
    assert "Model: black-forest-labs/FLUX.1-dev," in public.info["parameters"]
    assert not any(word in str(public.info) for word in ("/home", str(tmp_path), str(tiny_flux)))


def test_pictures_of_another_version_or_tool(hub, style):
    """Texts that cannot be told again are left out; what impasto has not drawn is published as it is."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("impasto", '{"base": "/home/me/base"}')
    PICTURE.save(style / "previews" / "0.png", pnginfo=texts)
    publish(style, "me/ink")
    public = picture_of(hub.files["previews/0.png"])
    assert not public.info and (np.asarray(public) == np.asarray(PICTURE)).all()
    PICTURE.save(style / "previews" / "0.png", "JPEG")
    publish(style, "me/ink")
    assert hub.files["previews/0.png"] == (style / "previews" / "0.png").read_bytes()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{outside}/cat.png", "does not lie in the style folder"),
        ("../cat.png", "does not lie in the style folder"),
        ("link.png", "does not lie in the style folder"),
        ("{outside}/ink/previews/0.png", "does not lie in the style folder"),
        ("recipe.toml", "is no picture that can be read"),
        ("previews/half.png", "is no picture that can be read"),
        ("a\0b.png", "is no picture that can be read"),
        (7, "is no picture that can be read"),
    ],
)
def test_a_card_publishes_no_other_file(hub, style, tmp_path, url, message):
    """As one that came with a style may name any."""
    PICTURE.save(tmp_path / "cat.png")
    (style / "link.png").symlink_to(tmp_path / "cat.png")
    (style / "previews" / "half.png").write_bytes((tmp_path / "cat.png").read_bytes()[:300])
    name = url.format(outside=tmp_path) if isinstance(url, str) else url
    card = (style / "README.md").read_text()
    (style / "README.md").write_text(card.replace('"previews/0.png"', json.dumps(name)))
    with pytest.raises(UserError, match=message) as error:
        publish(style, "me/ink")
    assert repr(name) in str(error.value) and "\n" not in str(error.value) and not hub.files


def test_a_picture_that_is_not_there_is_passed_over(hub, style):
    (style / "previews" / "0.png").unlink()
    assert publish(style, "me/ink")["files"] == ["README.md", WEIGHTS]


@pytest.mark.parametrize(
    ("base", "stated", "name", "link"),
    [
        ("/tmp/gone/private-base", "", "private-base", False),
        ("bases/of/mine", "", "mine", False),
        ("models/mine.safetensors", "", "mine.safetensors", False),
        ("tiny/mine", "base_local = true", "mine", False),
        ("tiny/mine", "base_local = false", "tiny/mine", True),
        ("tiny/mine", "", "tiny/mine", True),  # an older run's: nothing tells
    ],
)
def test_a_base_that_is_not_here_any_more(hub, style, base, stated, name, link):
    """What it was is told by the run, or by how it is written: not by what the publisher's folder holds."""
    (style / "recipe.toml").write_text(RECIPE.format(base=base) + f"[impasto]\n{stated}\n")
    (style / "README.md").write_text(CARD.format(base=base))
    save_png(PICTURE, drawn(base, "/home/me/ink"), style / "previews" / "0.png")
    publish(style, "me/ink")
    card, public = hub.files["README.md"].decode(), picture_of(hub.files["previews/0.png"])
    assert f"A style for `{name}`" in card and f'from_pretrained("{name}"' in card and f"--base {name} " in card
    assert (f'base_model: "{name}"' in card) == ("base_model" in card) == link
    assert json.loads(public.info["impasto"])["base"] == name
    if name != base:
        assert base not in card + str(public.info)


def test_a_base_is_local_where_it_was_when_it_was_trained_on(hub, tmp_path, monkeypatch, picture, tiny_sd15):
    """Published and exported from another folder, in which no such base is; and so is what is made of the style."""
    shutil.copytree(tiny_sd15, tmp_path / "tiny" / "mine")
    monkeypatch.chdir(tmp_path)
    about = {"image": [str(picture)], "caption": ["a cat in ink style"], "out": str(tmp_path / "ink"), "steps": 1}
    train(resolve("style-friendly", "tiny/mine", preview=False, tensorboard=False, **about))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    resize_style(tmp_path / "ink", 2, tmp_path / "small")
    merge_styles([str(tmp_path / "ink"), str(tmp_path / "small")], tmp_path / "both")
    for name in ("ink", "small", "both"):
        publish(tmp_path / name, "me/ink")
        assert (
            "tiny/mine" not in hub.files["README.md"].decode() and "base_model" not in hub.files["README.md"].decode()
        )
        with safe_open(export_style(tmp_path / name, private=True)["out"], "pt") as file:
            assert not {"impasto.base", "impasto.base_local", "ss_sd_model_name"} & file.metadata().keys()


def test_a_base_that_has_moved_since_the_card(style, tiny_flux):
    """A run that goes on states its base anew, but a complete one keeps its card."""
    card = CARD.format(base="/home/me/old").replace(
        "A style for `/home/me/old`", "A style for `/home/me/old`, learnt from 1"
    )
    (style / "README.md").write_text(card)
    told = About(style / WEIGHTS, recipe={"base": str(tiny_flux)})
    assert "/home/me/old" not in hub_card(told, str(tiny_flux), "flux", "me/ink", [])


def test_the_card_points_to_nothing_that_is_not_there(tmp_path, tiny_sd15):
    about = {"image": ["a.png"], "caption": ["a cat in ink style"], "out": str(tmp_path)}
    config = resolve("style-friendly", str(tiny_sd15), **about)
    write_card(config, load(str(tiny_sd15), device="cpu"), [], "1")
    card = (tmp_path / "README.md").read_text()
    assert "everything else in\n`recipe.toml`, the loss of each step in `metrics.jsonl`." in card
    public = hub_card(About(tmp_path / WEIGHTS, recipe=flatten(config)), config.base, "sd15", "me/ink", [])
    assert "recipe.toml" not in public and "metrics.jsonl" not in public
    assert f"draws of a noise level in {config.optim.steps} steps.\n" in public


def test_the_trigger_is_what_the_hub_shows(style, tiny_flux):
    """Of a card that is made for the Hub; its code draws a whole caption."""
    (style / "README.md").unlink()
    recipe = {"base": str(tiny_flux), "caption": ["a rocket, [trigger]"], "trigger": "wibble style"}
    card = hub_card(About(style / WEIGHTS, recipe=recipe), str(tiny_flux), "flux", "me/ink", [])
    assert 'instance_prompt: "wibble style"\n' in card and 'pipe("a rocket, wibble style"' in card


def test_the_sampling_defaults_of_a_style_go_with_it(hub, style, tmp_path):
    """`style.json`, of it the sampling alone."""
    own = shutil.copytree(style, tmp_path / "own")
    (own / "style.json").write_text(json.dumps({"sampling": {"strength": 0.6}, "notes": "/home/me"}))
    assert "style.json" in publish(own, "me/ink")["files"]
    assert json.loads(hub.files["style.json"]) == {"sampling": {"strength": 0.6}}
