"""Publishing, against a local fake of the Hub's HTTP API: what is sent, and one line for everything that goes wrong."""

import base64
import json
import shlex
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file

from impasto import cli
from impasto.adapters.io import WEIGHTS
from impasto.adapters.metadata import About
from impasto.config import as_dict, resolve
from impasto.errors import UserError
from impasto.families import load
from impasto.hub import check_access, hub_card, publish
from impasto.modelcard import write_card
from impasto.train import train

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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def style(tmp_path, tiny_flux):
    folder = tmp_path / "ink"
    (folder / "previews").mkdir(parents=True)
    (folder / "previews" / "0.png").write_bytes(b"a picture")
    name = "transformer.single_transformer_blocks.0.proj_out"
    halves = {f"{name}.lora_A.weight": torch.randn(4, 6), f"{name}.lora_B.weight": torch.randn(5, 4)}
    save_file(halves, folder / WEIGHTS)
    (folder / "recipe.toml").write_text(RECIPE.format(base=tiny_flux))
    (folder / "README.md").write_text(CARD.format(base=tiny_flux))
    return folder


def test_the_repository_holds_weights_card_and_pictures(hub, style, tiny_flux, tmp_path):
    result = publish(style, "me/ink", private=True)
    assert result == {"url": f"{hub.url}/me/ink", "commit": "abc", "files": ["README.md", "previews/0.png", WEIGHTS]}
    assert sorted(hub.files) == result["files"] and hub.files["previews/0.png"] == b"a picture"
    assert hub.repos["me/ink"].get("visibility") == "private" or hub.repos["me/ink"].get("private") is True
    card = hub.files["README.md"].decode()
    assert 'load_lora_weights("me/ink", weight_name=' in card and "--style ink" in card and "`--style ink:0.7`" in card
    (tmp_path / "down.safetensors").write_bytes(hub.files[WEIGHTS])
    with safe_open(tmp_path / "down.safetensors", "pt") as file:
        said = str(file.metadata()) + card
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
    told = About(folder / WEIGHTS, recipe=as_dict(config))
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
    config = resolve("style-friendly", str(tiny_sd15), push_to_hub="me/ink", hub_private=True, preview=False, **about)
    assert train(config)["hub"] == f"{hub.url}/me/ink"
    assert {"README.md", WEIGHTS} <= set(hub.files)
    assert "push_to_hub" not in (tmp_path / "ink" / "recipe.toml").read_text()
    hub.files.clear()
    assert train(config)["resumed_from"] == 1 and WEIGHTS in hub.files  # the same command publishes again
