"""Styles on the Hugging Face Hub: the weights in diffusers' layout, the card with its pictures, and another tool's
file beside them when one is asked for. What is published never names a path of this machine.
"""

import json
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.errors import UserError
from impasto.styles import defaults as style_defaults
from impasto.styles.card import ELSEWHERE, made_card, quoted, trained_size
from impasto.styles.convert import check_lora_alone, export_style, open_style
from impasto.styles.metadata import REPO, About, known_card
from impasto.styles.parts import STYLE_JSON
from impasto.styles.weights import WEIGHTS

FORBIDDEN = "the token may not write to {!r}: it needs the right to write, and the owner must be you or yours"
STRING = r'"(?:[^"\\]|\\.)*"'
WORD = r"""(?:'[^']*'|"[^"]*"|[^\s'"`])+?"""  # of a shell


def publish(
    style: Path | str, repo: str, format: str = "diffusers", *, base: str | None = None, private: bool = False
) -> dict[str, Any]:
    """Put a style into the model repository `owner/name`, which is made where there is none; returns what is there now.

    format: a file in this layout as well. private: whether a new repository is. Raises UserError when there is no
    token, the Hub does not accept it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_token(repo)
    check_lora_alone(style, "push-to-hub")
    adapter, told = open_style(style, base=base)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        other = folder / format / f"{told.name}-{format}.safetensors"
        files = [folder / WEIGHTS] + ([] if format == "diffusers" else [other])
        for file, layout in zip(files, ("diffusers", format), strict=False):
            export_style(style, layout, file, private=True, base=base)
        card = hub_card(told, base or told.base, adapter.architecture, repo, [file.name for file in files])
        (folder / "README.md").write_text(card, encoding="utf-8")
        there = {file.name: file for file in [*files, folder / "README.md"]}
        if stated := style_defaults.stated(Path(style)):
            there[STYLE_JSON] = folder / STYLE_JSON
            there[STYLE_JSON].write_text(json.dumps(stated), encoding="utf-8")
        for i, (name, file) in enumerate(pictures(told, card).items()):
            there[name] = public_picture(file, folder / f"picture-{i}.png", told, base or told.base, repo)
        endpoint = os.environ.get("HF_ENDPOINT")
        try:
            api = HfApi(endpoint=endpoint)
            api.create_repo(repo, private=private or None, exist_ok=True)
            operations = [CommitOperationAdd(name, file) for name, file in there.items()]
            commit = api.create_commit(repo, operations, commit_message=f"impasto: {told.name}")
        except Exception as error:  # hub, http and file system errors have no common class
            raise UserError(why(error, repo, endpoint)) from None
    return {"url": str(commit.repo_url), "commit": commit.oid, "files": sorted(there)}


def check_token(repo: str) -> None:
    """Raise UserError unless `repo` is written owner/name and there is a token. Asks nobody."""
    from huggingface_hub import get_token

    if not REPO.fullmatch(repo):
        raise UserError(f"--push-to-hub {repo!r} is no name of a repository: it is owner/name")
    if get_token() is None:
        raise UserError(
            "there is no token for the Hub: `hf auth login`, or set HF_TOKEN; it must be one that can write"
        )


def check_access(repo: str) -> None:
    """Raise UserError unless the Hub knows the token, and it may write for the owner of `repo` as far as it tells.

    One request (whoami). What a fine-grained token may do is seen when it is used.
    """
    from huggingface_hub import HfApi

    check_token(repo)
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        me = HfApi(endpoint=endpoint).whoami()
    except Exception as error:  # as in `publish`
        raise UserError(why(error, repo, endpoint)) from None
    orgs = {org["name"] for org in me.get("orgs", []) if org.get("roleInOrg") != "read"}
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read" or repo.partition("/")[0] not in {me["name"], *orgs}:
        raise UserError(FORBIDDEN.format(repo))


def hub_card(told: About, base: str | None, architecture: str, repo: str, files: list[str]) -> str:
    """The style's own README.md with the repository in place of this machine's folders."""
    own = told.file.parent / "README.md"
    if told.file.name == WEIGHTS and own.is_file():
        text = own.read_text(encoding="utf-8")
    else:
        known, prompt = known_card(base, architecture), next(iter(told.captions), None)
        size = trained_size(told)
        text = made_card(told.name, "A LoRA.", repo, base, known, architecture, told.trigger, size, prompt)
    name = public_base(told, base)
    recipe, style = told.recipe, repo.partition("/")[2]
    text = text.replace(ELSEWHERE, "")
    text = re.sub(rf"load_lora_weights\({STRING}", lambda _: f"load_lora_weights({quoted(repo)}", text)
    text = re.sub(rf"from_(pretrained|single_file)\({STRING}", lambda found: f"from_{found[1]}({quoted(name)}", text)
    text = named(text, "--style", style, recipe.get("out"), str(told.file.parent))
    text = named(text, "--base", shlex.quote(name), told.base, base)
    text = named(text, "--components", "", recipe.get("components"))
    own_base = re.search(r"^A style for `(.+?)`, learnt from", text, re.MULTILINE)  # where it has moved since
    for old in {told.base, base, own_base and own_base[1]} - {None, name}:
        text = text.replace(f"`{old}`", f"`{name}`")
    there = REPO.fullmatch(name) and not told.local(base)
    linked = f"base_model: {quoted(name)}\n" if there else ""  # the Hub refuses what is no repository
    text = re.sub(r"^base_model: .*\n", lambda _: linked, text, count=1, flags=re.MULTILINE)
    if len(files) > 1:
        text += f"\nFor tools that do not read diffusers' layout: `{files[1]}`.\n"
    return text


def named(text: str, flag: str, new: str, *known: str | None) -> str:
    """A card with another word behind a flag of its commands, without that flag where `new` is empty. known: words that
    may stand there; older cards do not quote them."""
    words = "|".join([*(re.escape(word) for word in known if word), WORD])
    there = rf"( ?){flag} (?:{words})(?=(?::[\d.]+)?[`\s])"
    return re.sub(there, lambda found: f"{found[1]}{flag} {new}" if new else "", text)


def public_base(told: About, base: str | None) -> str:
    """What is published of a base's name: of a folder or file the last part."""
    return (Path(base).name if base and told.local(base) else base) or "its base model"


def pictures(told: About, card: str) -> dict[str, Path]:
    """The card's pictures: {name in the repository: file}, as far as they are there. Raises UserError where one is none
    of the style folder's."""
    line = re.search(r"^widget: (\[.*\])$", card, re.MULTILINE)
    try:
        names = [example["output"]["url"] for example in json.loads(line[1])] if line else []
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"{told.file.parent / 'README.md'}: its widget is not a list of texts and pictures") from None
    return {name: file for name in names if (file := picture(told.file.parent, name))}


def picture(folder: Path, name: Any) -> Path | None:
    """The file of a picture in the style folder, None where there is none of that name.

    Raises UserError for any other file: a card may come from anywhere, and publishes nothing else of this machine.
    """
    card = folder / "README.md"
    try:
        file = folder / name
        inside = not Path(name).is_absolute() and file.resolve().is_relative_to(folder.resolve())
        if inside and file.is_file():
            with Image.open(file) as image:
                image.load()
            return file
    except (OSError, ValueError, TypeError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        raise UserError(f"{card}: its widget's {name!r} is no picture that can be read: take it out there") from None
    if not inside:
        raise UserError(
            f"{card}: its widget's {name!r} does not lie in the style folder: copy it there, or take it out"
        )
    return None


def public_picture(file: Path, out: Path, told: About, base: str | None, repo: str) -> Path:
    """A picture that impasto drew, written to `out` with texts that name style and base as the card does; any other one
    as it is. Texts of another version that cannot be told again are left out."""
    from impasto.sampling.png import metadata, save_png

    with Image.open(file) as image:
        image.load()  # there may be texts behind the pixels
        if "impasto" not in image.info:
            return file
        try:
            save_png(image, public_info(metadata(image.info["impasto"]), told, base, repo), out)
        except (KeyError, TypeError, AttributeError, ValueError):
            image.save(out, "PNG")
    return out


def public_info(info: dict[str, Any], told: About, base: str | None, repo: str) -> dict[str, Any]:
    """What a picture tells of how it was drawn, without the folders of this machine."""
    names = dict.fromkeys((told.recipe.get("out"), str(told.file.parent)), repo.partition("/")[2])
    info = info | {
        "styles": [one | {"path": names.get(one["path"]) or Path(one["path"]).name} for one in info["styles"]],
        "base": public_base(told, base if info["base"] == told.base else info["base"]),
    }
    if "aligned" in info:
        info["aligned"] = info["aligned"] | {"reference": Path(info["aligned"]["reference"]).name}
    return info


def why(error: Exception, repo: str, endpoint: str | None) -> str:
    """One line on what the Hub or the way to it did."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub does not accept the token: `hf auth login` again, or set HF_TOKEN to one that is valid"
    if status == 403:
        return FORBIDDEN.format(repo)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if status is None:
        return f"the Hub ({endpoint or 'huggingface.co'}) cannot be reached: {reason}"
    return f"the Hub refused to take {repo!r} ({status}): {reason}"
