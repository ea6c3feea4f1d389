"""Base models by name: an embedded one ("mini-sd3"), a diffusers folder, a safetensors file, a hub id ("owner/name").

The table FAMILIES maps the pipeline class that a folder names in its `model_index.json` to the file that speaks to it.
"""

import hashlib
import json
import math
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.errors import UserError, nearest

if TYPE_CHECKING:
    from impasto.families.base import Family
    from impasto.noise.schedule import Schedule

LARGE = 64_000_000  # bytes; hashing less takes no time
VARIANT = "fp16"  # of weights, in their files' names; read where there are no others
OF_VARIANT = re.compile(r".+\..+\.safetensors|.+\.index\..+\.json")
READ = {".safetensors", ".json", ".txt", ".model"}  # of a base: no pickles, no second format
SCHEDULER = "scheduler/scheduler_config.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CARD = {  # types of what a folder's `impasto.json` may say; see cards.toml
    "size": int,
    "bucket_step": int,
    "embedded": bool,
    "betas": tuple[float, ...],
    "prior_prompts": tuple[str, ...],
    "generate.steps": int,
    "generate.guidance": float,
    "generate.batch": int,
    **dict.fromkeys(("name", "pipeline", "license", "license_name", "license_link"), str),
    **dict.fromkeys(("recipe", "modelspec", "predicts"), str),
}
FAMILIES = {
    "FluxPipeline": ("impasto.families.flux", "Flux"),
    "StableDiffusion3Pipeline": ("impasto.families.sd3", "SD3"),
    "StableDiffusionXLPipeline": ("impasto.families.sdxl", "SDXL"),
    "StableDiffusionPipeline": ("impasto.families.sd15", "SD15"),
}


@cache
def cards() -> dict[str, dict[str, Any]]:
    """`cards.toml`: per base, or per pipeline class, how it is spoken to and trained."""
    return tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))


def embedded() -> list[str]:
    """Names of the base models that come with the package."""
    return [name for name, card in cards().items() if card.get("embedded")]


def pipeline_class(folder: Path) -> str:
    """The pipeline class that a diffusers folder names."""
    name = model_index(folder).get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{folder}/model_index.json cannot be read")
    return name


def model_index(folder: Path) -> dict[str, Any]:
    """What the `model_index.json` of a diffusers folder says. Raises UserError when it cannot be read."""
    try:
        return read_object(folder / "model_index.json")
    except FileNotFoundError:
        raise UserError(f"{folder} is not a diffusers folder: it has no model_index.json") from None
    except (OSError, ValueError):
        raise UserError(f"{folder}/model_index.json cannot be read") from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError when there is anything else in it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no object")
    return found


def check_class(base: str, name: str | None) -> None:
    """Raise UserError when the pipeline class of `base` is known and none that impasto speaks."""
    if name and name not in FAMILIES:
        raise UserError(f"{base!r} is a {name}, which impasto does not speak yet; known: {', '.join(FAMILIES)}")


def check_name(base: str) -> None:
    """Raise UserError unless `base` is a folder, a safetensors file, embedded, or at least written like a hub id."""
    from impasto.families.single_file import is_file

    if Path(base).is_dir() or base in embedded() or is_file(base):
        return
    if not HUB_ID.fullmatch(base):
        raise UserError(
            f"unknown base {base!r}: {nearest(base, embedded())}, or a diffusers folder, a .safetensors file, "
            "or a hub id as owner/name"
        )


def card(base: str) -> dict[str, Any]:
    """What is known about `base` without loading it: the class's card, the base's, the folder's own.

    A folder may carry an `impasto.json` with a "name" (an entry of cards.toml) and any key of a card; of "generate" and
    "train" it may say a part. A hub id that is no entry is asked for its class alone (see `part_config`); nothing is
    known where that cannot be had. FLUX without an input for guidance goes by schnell's card, but for its licence.
    Raises UserError when `base` is none of a folder, an embedded name and a hub id.
    """
    check_name(base)
    folder = Path(base)
    known = cards()
    if folder.is_file():
        from impasto.families.single_file import base_card

        return card(base_card(folder)) | {"license": "other"}
    if not folder.is_dir():
        own, name = {}, base
        told = known.get(base) or part_config(base, "model_index.json")
        pipeline = told.get("pipeline") or told.get("_class_name", "")
    else:
        own = own_card(folder / "impasto.json")
        name, pipeline = str(own.get("name", "")), pipeline_class(folder)
    named = known.get(name, {})
    if pipeline == "FluxPipeline" and not named:
        transformer = part_config(base, "transformer/config.json")
        if transformer and not transformer.get("guidance_embeds", False):
            named = known["black-forest-labs/FLUX.1-schnell"] | {"license": "other"}
    found = known.get(pipeline, {}) | known.get(named.get("like", ""), {}) | named
    merged = [table for table in ("generate", "train", "style") if table in own]
    return found | own | {table: found.get(table, {}) | own[table] for table in merged}


def own_card(file: Path) -> dict[str, Any]:
    """What an `impasto.json` says, {} where there is none. Raises UserError when it cannot be read, and for a value of
    another type than a card has there (CARD)."""
    from impasto.config import check_values, convert
    from impasto.style_defaults import of_card

    try:
        own = read_object(file) if file.is_file() else {}
    except (OSError, ValueError):
        raise UserError(f"{file} cannot be read: mend it, or remove it") from None
    recipes = own.get("recipes", {})
    tables = {name: own[name] for name in ("generate", "train", "style", "recipes", "text_lengths") if name in own}
    tables |= {f"recipes.{name}": keys for name, keys in recipes.items()} if isinstance(recipes, dict) else {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: {name} must be a table, not {table!r}")
    said = own | {f"generate.{key}": value for key, value in own.get("generate", {}).items()}
    for key, kind in CARD.items():
        if key in said:
            convert(said[key], kind, f"{file}: {key}")
    for name, table in tables.items():
        if name.startswith(("train", "recipes.")):
            check_values(table, f"{file}: {name}")
    if "style" in own:
        of_card(own, where=f"{file}: style")
    if "text_lengths" in own:
        check_lengths(own["text_lengths"], file)
    return own


def check_lengths(lengths: Mapping[str, Any], file: Path) -> None:
    """Raise UserError unless `text_lengths` of an `impasto.json` are numbers of tokens with shares above 0."""
    from impasto.config import convert

    shares = [convert(share, float, f"{file}: text_lengths.{length}") for length, share in lengths.items()]
    whole = all(length.isdecimal() and int(length) > 0 for length in lengths)
    if not shares or not whole or not all(0 < share < math.inf for share in shares):
        raise UserError(f"{file}: text_lengths must be numbers of tokens with shares above 0, not {dict(lengths)!r}")


def part_config(base: str, name: str) -> dict[str, Any]:
    """A configuration of a diffusers folder or a hub id, such as "unet/config.json"; {} where it cannot be had.

    A hub id's is looked up in the hub's cache, else fetched (a few kB).
    """
    from huggingface_hub import try_to_load_from_cache

    file = None
    try:
        if Path(base).is_dir():
            file = Path(base, name)
        elif HUB_ID.fullmatch(base):
            found = try_to_load_from_cache(base, name)
            file = Path(found) if isinstance(found, str) else fetched(base, name)
        return read_object(file) if file else {}
    except (OSError, ValueError):  # a damaged one, or what the hub does not take for an id, such as "../x"
        return {}


@cache
def fetched(base: str, name: str) -> Path | None:
    """One file of a hub id; None when it cannot be had, for which nobody is asked twice."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, name))
    except Exception:  # hub, http and file system errors have no common class; who needs the base is told by `download`
        return None


def check_components(base: str, components: Path | None) -> None:
    """Raise UserError when it is given and no folder; warn where `base` is no single file, which holds all itself."""
    if components is None:
        return
    if not components.is_dir():
        raise UserError(f"--components {str(components)!r} is no folder: name a diffusers folder")
    if not Path(base).is_file():
        warnings.warn(
            "components are of a .safetensors checkpoint: this base has its own, which are used", stacklevel=1
        )


def locate(base: str, components: Path | None = None) -> Path:
    """The diffusers folder of `base`: embedded ones are assembled in the cache, single files converted there, hub ids
    downloaded (or found there). components: a diffusers folder for what a single file does not hold.

    Raises UserError when there is no such base, no network, or no access.
    """
    check_name(base)
    check_components(base, components)
    if Path(base).is_dir():
        return Path(base)
    if Path(base).is_file():
        from impasto.families import single_file

        return single_file.convert(Path(base), components)
    if base in embedded():
        from impasto.families import mini

        return mini.ensure(base)
    return download(base)


def download(base: str) -> Path:
    """The folder of a hub id in the hub's cache. Raises UserError when it cannot be had, saying what to do."""
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    from impasto.families.base import quiet

    page = f"https://huggingface.co/{base}"
    try:
        with quiet():
            try:
                return Path(DiffusionPipeline.download(base, use_safetensors=True))
            except OSError as error:
                if not lacks_safetensors(error):
                    raise
            return Path(DiffusionPipeline.download(base, use_safetensors=True, variant=VARIANT))
    except Exception as error:  # hub, http and file system errors have no common class
        causes = chain(error)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            why = f"is gated: accept its licence at {page}, make a token, and give it to `hf auth login`"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            why = f"is not on the hub, or private: check {page}, and `hf auth login` where it is yours"
        elif lacks_safetensors(error):
            why = f"has weights that are no safetensors, and pickles are not read: see {page} for another upload of it"
        else:
            said = (str(causes[-1]).strip() or type(causes[-1]).__name__).splitlines()[0]
            why = (
                f"is not a folder here and cannot be fetched from the hub ({said[:150]}); "
                "check the name and the network, and `hf auth login` for gated models"
            )
        raise UserError(f"base {base!r} {why}") from None


def lacks_safetensors(error: Exception) -> bool:
    """Whether diffusers says that a component has no safetensors (of the variant that was asked for)."""
    return "Could not find the necessary `safetensors` weights" in str(error)


def chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, the first cause last."""
    inner = error.__cause__ or error.__context__
    return [error, *(chain(inner) if inner else [])]


def schedule(base: str) -> "Schedule":
    """The noise schedule of `base` as far as it is known without loading or downloading it.

    A folder's or a single file's own; else by the card's `betas` (scaled-linear); a rectified flow where the card has
    none. Warns when nothing at all is known of the base.
    """
    from impasto.noise.schedule import RectifiedFlow, VariancePreserving

    known = card(base)
    if Path(base).exists() and (family := outline(base)):
        return family.schedule
    if not known:
        check_class(base, part_config(base, "model_index.json").get("_class_name"))
        warnings.warn(
            f"base {base!r} is not here, and the hub does not tell what it is: its family, its size and the levels at "
            "which its noise law ends are unknown until it is; shown is what a rectified flow would have",
            stacklevel=2,
        )
    return VariancePreserving.scaled_linear(*known["betas"]) if "betas" in known else RectifiedFlow()


def folder_hash(folder: Path) -> str:
    """sha256 over weights, configs and tokenisers of a diffusers folder: what makes its pictures, and nothing else (see
    `counted`).

    A weight file that is a link into the hub's cache is known there by its sha256 already; the versions of libraries
    that configs state do not count.
    """
    total = hashlib.sha256()
    for file in counted(folder):
        total.update(f"{file.relative_to(folder).as_posix()} {file_hash(file)}\n".encode())
    return total.hexdigest()


def counted(folder: Path) -> list[Path]:
    """The files of a diffusers folder that are read: `model_index.json`, and those of the components that it names; not
    how they came about (`card.json`), and not what another tool has fetched into the same folder."""
    parts = {name for name, value in model_index(folder).items() if isinstance(value, list) and value and value[0]}
    files = [file for part in folder.iterdir() if part.name in parts for file in read_of(part)]
    named = [file for file in files if file.name != "card.json"]
    return sorted([folder / "model_index.json", *without_variants(named)])


def read_of(part: Path) -> list[Path]:
    """The files of a component's folder that are read (READ), those in linked folders too."""
    return sorted(file for file in below(part) if file.suffix in READ)


def below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files in a folder and in those below. Links to folders are followed, but for those that lead back up."""
    if not folder.is_dir() or folder.resolve() in above:
        return
    for entry in folder.iterdir():
        if entry.is_file():
            yield entry
        else:
            yield from below(entry, above | {folder.resolve()})


def without_variants(files: list[Path]) -> list[Path]:
    """Components' files but for those of a variant, such as "model.fp16.safetensors", beside plain weights, which are
    what is read."""
    plain = {file.parent for file in files if file.suffix == ".safetensors" and not OF_VARIANT.fullmatch(file.name)}
    return [file for file in files if file.parent not in plain or not OF_VARIANT.fullmatch(file.name)]


def file_hash(file: Path) -> str:
    """sha256 of one file of a base. Raises UserError for a configuration that cannot be read."""
    blob = file.resolve().name
    if file.suffix == ".safetensors" and re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    if file.name.endswith(("config.json", "model_index.json")):
        try:
            content = read_object(file)
        except ValueError:
            raise UserError(f"the base is damaged: {str(file)!r} cannot be read; fetch it again") from None
        for key in ("_diffusers_version", "transformers_version"):
            content.pop(key, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    if file.stat().st_size < LARGE:
        return sha256(file)
    return remembered(file)


def remembered(file: Path) -> str:
    """sha256 of a large file, kept in the cache for as long as its size and its time of change stay the same."""
    from impasto.paths import atomic, cache_dir

    state = file.stat()
    told = {"path": str(file.resolve()), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    note = cache_dir("hashes", hashlib.sha256(told["path"].encode()).hexdigest()[:24] + ".json")
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if {key: known.get(key) for key in told} != told:
        known = told | {"sha256": sha256(file)}
        with atomic(note) as temporary:
            temporary.write_text(json.dumps(known), encoding="utf-8")
    return known["sha256"]


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def place(device: str, precision: str) -> tuple[str, str]:
    """("cpu" | "cuda" | "mps", "fp32" | "bf16") for what may be "auto". Raises UserError on anything else."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {device!r}: {nearest(device, ['auto', 'cpu', 'cuda', 'mps'])}")
    try:
        number = torch.device(device).index
    except RuntimeError:
        raise UserError(f"unknown device {device!r}: behind the colon goes a number, as in {kind}:0") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there or (kind == "cuda" and number and number >= torch.cuda.device_count()):
        raise UserError(f"there is no device {device!r} here: --device cpu, or auto")
    if precision not in ("fp32", "bf16"):
        raise UserError(f"unknown precision {precision!r}: {nearest(precision, ['auto', 'fp32', 'bf16'])}")
    return device, precision


def load(base: str, *, device: str = "auto", precision: str = "auto", components: Path | None = None) -> "Family":
    """The family of `base`, its weights not read yet. device, precision: see `place`; components: see `locate`."""
    device, precision = place(device, precision)
    return at(locate(base, components), base, device, precision)


def at(folder: Path, base: str, device: str, precision: str) -> "Family":
    """The family of a diffusers folder, which is that of `base`."""
    name = pipeline_class(folder)
    known = cards().get(name, {}) | card(base)
    return family_class(base, name).load(folder, known, device=device, precision=precision)


def family_class(base: str, name: str) -> "type[Family]":
    """The class that speaks to the pipeline class `name`. Raises UserError when there is none."""
    check_class(base, name)
    module, cls = FAMILIES[name]
    return getattr(import_module(module), cls)


def outline(base: str, components: Path | None = None) -> "Family | None":
    """The family of `base` (cpu, fp32) as far as its configurations tell: for `--dry-run`, no weights are read.

    Those of a hub id come from the hub's cache, else they are fetched (a few kB each); None where one cannot be had.
    Those of a single file, whose header is read, come with the package; what it does not hold goes by `components`.
    Raises UserError when there is no such base, and when it is none that impasto speaks.
    """
    check_name(base)
    check_components(base, components)
    if Path(base).is_file():
        from impasto.families import single_file

        folder = single_file.outline(Path(base), components)
    elif Path(base).is_dir() or base in embedded():
        folder = locate(base)
    elif configs := hub_configs(base):
        folder = outlined(configs)
    else:
        return None
    return at(folder, base, "cpu", "fp32")


def hub_configs(base: str) -> dict[str, dict[str, Any]] | None:
    """What the planner wants to know of a hub id, by file; None where one of them cannot be had."""
    index = part_config(base, "model_index.json")
    if "_class_name" not in index:
        return None
    cls: Any = family_class(base, index["_class_name"])
    parts = (cls.part, "vae", *(name for name in cls.clips if index.get(name, [None])[0]))
    found = {"model_index.json": index}
    for name in (SCHEDULER, *(f"{part}/config.json" for part in parts)):
        found[name] = part_config(base, name)
        if not found[name]:
            return None
    return found


def outlined(configs: Mapping[str, Any]) -> Path:
    """A folder in the cache, named by its contents, that holds these JSON files and nothing else."""
    from impasto.paths import atomic, cache_dir

    key = hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()
    folder = cache_dir("outlines", key[:24])
    for name, content in configs.items():
        if not (folder / name).is_file():
            with atomic(folder / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder
