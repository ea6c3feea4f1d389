"""Building the art world with a fake npm that serves tiny packages, or fails as the real one does."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from impasto.artworld import build as building
from impasto.artworld import load, load_meta, sources
from impasto.artworld.build import build
from impasto.errors import UserError

ICONS = json.loads((Path(__file__).parent / "data/icons.json").read_text())
PACKAGES = {"ph": "@iconify-json/ph", "icon-park": "@iconify-json/icon-park"}

NPM = """#!/bin/sh
for name; do :; done
echo "$name" >> "$FAKE_NPM/calls"
case "$name" in *"$FAKE_BREAK"*) [ -n "$FAKE_BREAK" ] && { echo "npm error code $FAKE_CODE" >&2; exit 1; };; esac
base=$(echo "$name" | tr -d @ | tr / -)
cp "$FAKE_NPM/$base.tgz" .
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A PATH with a fake npm only; tables and hashes of two packages are replaced by those of its tiny tarballs."""
    folder = tmp_path / "npm"
    folder.mkdir()
    (folder / "npm").write_text(NPM)
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("FAKE_NPM", str(folder))
    monkeypatch.setenv("FAKE_BREAK", "")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(sources.shutil, "which", lambda tool: str(folder / tool) if (folder / tool).exists() else None)
    pairs = {name: building._pairs()[name] for name in building._pairs()}
    for style, package in PACKAGES.items():
        pairs[style] = [pair for pair in pairs[style] if pair[1] in ICONS[style]["icons"]]
        entry = sources.sources()["packages"][package]
        data = tarball({"package/icons.json": json.dumps(ICONS[style]).encode()})
        (folder / f"iconify-json-{style}@{entry['version']}".replace("@", "")).touch()
        (folder / f"iconify-json-{style}{entry['version']}.tgz").write_bytes(data)
        monkeypatch.setitem(entry, "sha512", hashlib.sha512(data).hexdigest())
    monkeypatch.setattr(building, "_pairs", lambda: pairs)
    return folder


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_build_twice_reuses_data_file(npm, tmp_path):
    out = tmp_path / "world"
    result = build(out, styles=list(PACKAGES), progress=False)
    assert result["styles"] == {"icon-park": 2, "ph": 3} and result["pictures"] == 5 and not result["skipped"]
    assert sorted(path.name for path in out.iterdir()) == ["artworld128.safetensors", "meta.json"]
    world = load(path=result["path"])
    names = load_meta()["style_names"]
    assert [names[style] for style in world.style_id] == ["icon-park"] * 2 + ["ph"] * 3
    assert world.rgba.shape == (5, 128, 128, 4) and world.rgba[..., 3].max() == 255
    assert json.loads((out / "meta.json").read_text())["built"]["styles"] == result["styles"]
    before = (out / "artworld128.safetensors").read_bytes()
    assert len(calls(npm)) == 2
    assert build(out, styles=list(PACKAGES), progress=False) == result
    assert len(calls(npm)) == 2 and (out / "artworld128.safetensors").read_bytes() == before


def test_build_interrupted_resumes(npm, tmp_path, monkeypatch):
    out, encode = tmp_path / "world", building._encode

    def interrupted(pictures, pairs):
        if len(pictures) == 3:  # the second style
            raise KeyboardInterrupt
        return encode(pictures, pairs)

    monkeypatch.setattr(building, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(out, styles=list(PACKAGES), progress=False)
    assert not (out / "artworld128.safetensors").exists()
    monkeypatch.setattr(building, "_encode", encode)
    build(out, styles=list(PACKAGES), progress=False)
    assert len(calls(npm)) == 2  # nothing was fetched twice
    whole = build(tmp_path / "other", styles=list(PACKAGES), progress=False)
    assert (out / "artworld128.safetensors").read_bytes() == Path(whole["path"]).read_bytes()


def test_build_of_subset_reuses_data_file(npm, tmp_path):
    first = load(path=build(tmp_path, styles=list(PACKAGES), progress=False)["path"])
    second = load(path=build(tmp_path, styles=["ph"], progress=False)["path"])
    assert len(calls(npm)) == 2 and (second.rgba == first.select(styles=["ph"]).rgba).all()


def test_build_with_damaged_file_rebuilds(npm, tmp_path, capsys):
    path = Path(build(tmp_path, styles=["ph"], progress=False)["path"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        load(path=path)
    build(tmp_path, styles=["ph"], progress=False)
    assert len(load(path=path)) == 3 and "rebuilding it" in capsys.readouterr().err


def test_build_without_npm_raises(npm, tmp_path):
    (npm / "npm").unlink()
    with pytest.raises(UserError, match="npm") as error:
        build(tmp_path / "world", styles=["ph"], progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "world").exists()


@pytest.mark.parametrize("code", ["ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT"])
def test_build_without_network_raises(npm, tmp_path, monkeypatch, code):
    monkeypatch.setenv("FAKE_BREAK", "icon-park")
    monkeypatch.setenv("FAKE_CODE", code)
    with pytest.raises(UserError, match=code) as error:
        build(tmp_path / "world", styles=list(PACKAGES), progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "world").exists()


def test_build_after_network_loss_keeps_finished_styles(npm, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BREAK", "/ph")
    monkeypatch.setenv("FAKE_CODE", "ENOTFOUND")
    with pytest.raises(UserError):
        build(tmp_path, styles=list(PACKAGES), progress=False)
    assert not (tmp_path / "artworld128.safetensors").exists()
    monkeypatch.setenv("FAKE_BREAK", "")
    assert build(tmp_path, styles=list(PACKAGES), progress=False)["pictures"] == 5
    assert [call.split("/")[1].split("@")[0] for call in calls(npm)] == ["icon-park", "ph", "ph"]


@pytest.mark.parametrize("code", ["E404", "ETARGET"])
def test_build_with_missing_package_skips_style(npm, tmp_path, monkeypatch, capsys, code):
    monkeypatch.setenv("FAKE_BREAK", "/ph")
    monkeypatch.setenv("FAKE_CODE", code)
    result = build(tmp_path, styles=list(PACKAGES), progress=False)
    assert result["styles"] == {"icon-park": 2} and list(result["skipped"]) == ["ph"]
    assert capsys.readouterr().err.count("skipped ph") == 1
    with pytest.raises(UserError, match="no images of ph"):
        load(styles=["ph"], path=result["path"])


def test_build_without_any_package_raises(npm, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_BREAK", "iconify")
    monkeypatch.setenv("FAKE_CODE", "E404")
    with pytest.raises(UserError, match="none of the art world"):
        build(tmp_path / "world", styles=list(PACKAGES), progress=False)
    assert not (tmp_path / "world").exists()


def test_build_with_wrong_hash_raises(npm, tmp_path, monkeypatch):
    monkeypatch.setitem(sources.sources()["packages"]["@iconify-json/ph"], "sha512", "0" * 128)
    with pytest.raises(UserError, match="expected 0000"):
        build(tmp_path / "world", styles=["ph"], progress=False)
    assert not (tmp_path / "world").exists()


def test_build_without_apt_skips_debian_fonts(npm, tmp_path):
    result = build(tmp_path, styles=["ph", "symbola"], progress=False)
    assert "apt-get" in result["skipped"]["symbola"] and result["styles"] == {"ph": 3}


def test_fetch_debian_font_uses_private_lists(npm, tmp_path, monkeypatch):
    data = b"a font"
    (npm / "font.tar").write_bytes(tarball({"./usr/share/fonts/x/Symbola_hint.ttf": data, "./usr/share/doc/x": b""}))
    (npm / "apt-get").write_text(
        '#!/bin/sh\necho "$@" >> "$FAKE_NPM/apt"\n'
        'case "$*" in *update*) exit 0;; *Lists*) cp "$FAKE_NPM/font.tar" symbola.deb;; *) exit 100;; esac\n'
    )
    (npm / "dpkg-deb").write_text('#!/bin/sh\ncat "$2"\n')
    for tool in ("apt-get", "dpkg-deb"):
        (npm / tool).chmod(0o755)
    digest = hashlib.sha256((npm / "font.tar").read_bytes()).hexdigest()
    monkeypatch.setitem(sources.sources()["packages"]["fonts-symbola"], "sha256", digest)
    archive = sources.fetch("fonts-symbola", tmp_path / "downloads")
    assert sources.unpack(archive, ["Symbola_hint.ttf"]) == {"usr/share/fonts/x/Symbola_hint.ttf": data}
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [archive.name]
    assert len((npm / "apt").read_text().splitlines()) == 3  # download, update, download


def test_select_styles_without_sharealike():
    assert set(building._select_styles(None, True)) - set(building._select_styles(None, False)) == {
        "openmoji",
        "openmoji-black",
        "emojione-v1",
    }
    licences = {style["name"]: style["licence"] for style in load_meta()["styles"]}
    assert {name for name, licence in licences.items() if "SA" in licence} == set(sources.SHAREALIKE)


def test_build_with_bad_arguments_raises(tmp_path):
    with pytest.raises(UserError, match="did you mean 'unifont'"):
        build(tmp_path, styles=["unifnt"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        build(tmp_path / "file")


def test_sources_cover_all_styles_and_pairs():
    pairs = building._pairs()
    assert list(sources.sources()["styles"]) == load_meta()["style_names"]
    assert sum(map(len, pairs.values())) == 16464
    for style, entry in sources.sources()["styles"].items():
        assert entry["package"] in sources.sources()["packages"] and entry["reader"] in building.render.READERS
        assert len({concept for concept, _ in pairs[style]}) == len(pairs[style])
    assert np.all(
        [len(p.get("sha512", "")) == 128 or len(p["sha256"]) == 64 for p in sources.sources()["packages"].values()]
    )
