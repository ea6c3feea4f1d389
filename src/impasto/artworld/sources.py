"""The pinned source packages of the art world: npm's for the icon and emoji sets, Debian's for two fonts.

Fetched by `npm pack` and `apt-get download`, checked against the hashes in `data/sources.json`, read in memory. Nothing
is installed.
"""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from impasto.errors import UserError
from impasto.files import atomic

SHAREALIKE = ("openmoji", "openmoji-black", "emojione-v1")  # CC BY-SA 4.0: their images keep that licence
TIMEOUT = 900  # seconds for one package
RESUME_HINT = "the same command resumes"


class UnavailableError(Exception):
    """A package is not available in the pinned version: its styles are skipped, the rest is built."""


@cache
def sources() -> dict:
    """`packages`: name -> {from, version, bytes, sha512 | sha256}; `styles`: name -> {package, reader, files}."""
    return json.loads(files("impasto.artworld").joinpath("data/sources.json").read_text(encoding="utf-8"))


def fetch(name: str, folder: Path) -> Path:
    """Download package `name` into `folder` (once), check its hash, and return the archive's path.

    Raises UnavailableError when the package system lacks this version, UserError when client or network are missing or
    the hash is wrong. Files in `folder` are always complete and checked.
    """
    package = sources()["packages"][name]
    kind, suffix = ("sha512", ".tgz") if package["from"] == "npm" else ("sha256", ".deb")
    target = folder / f"{package[kind][:16]}{suffix}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        work = folder / f"{temporary.name}.dir"
        work.mkdir()
        try:
            archive = CLIENTS[package["from"]](name, package["version"], work)
            check(archive, name)
            shutil.copyfile(archive, temporary)
        finally:
            shutil.rmtree(work)
    return target


def check(archive: Path, name: str) -> None:
    """Raise UserError unless `archive` has the pinned hash of package `name`."""
    package = sources()["packages"][name]
    kind = "sha512" if "sha512" in package else "sha256"
    found = hashlib.new(kind, archive.read_bytes()).hexdigest()
    if found != package[kind]:
        raise UserError(
            f"{name} {package['version']}: {kind} is {found[:16]}..., expected {package[kind][:16]}...; "
            f"the package was changed or the download is damaged; it is not used"
        )


def npm_pack(name: str, version: str, folder: Path) -> Path:
    """`npm pack name@version` in `folder`."""
    if not shutil.which("npm"):
        raise UserError("building the art world needs npm (it comes with Node.js), which is not on the PATH")
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    done = _run([*command, "--loglevel=error", f"{name}@{version}"], folder)
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode == 0 and archives:
        return archives[0]
    if any(code in done.stderr for code in ("E404", "ETARGET", "notarget")):
        raise UnavailableError(f"npm has no {name} {version}")
    raise UserError(f"npm could not fetch {name} {version} ({_reason(done.stderr)}); check the network, {RESUME_HINT}")


def apt_download(name: str, version: str, folder: Path) -> Path:
    """`apt-get download name=version` in `folder`; retried with private package lists if the system's lack it."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise UnavailableError(f"Debian's {name} {version} needs {tool}, which is not on the PATH")
    download = ["apt-get", "-qq", "download", f"{name}={version}"]
    done = _run(download, folder)
    if done.returncode:
        private = _private_lists(folder / "apt")
        _run(["apt-get", "-qq", *private, "update"], folder)
        done = _run([download[0], *private, *download[1:]], folder)
    archives = sorted(folder.glob("*.deb"))
    if done.returncode == 0 and archives:
        return archives[0]
    raise UnavailableError(f"Debian's {name} {version} is not available ({_reason(done.stderr)})")


CLIENTS = {"npm": npm_pack, "debian": apt_download}


def unpack(archive: Path, patterns: list[str]) -> dict[str, bytes]:
    """The files of an npm tarball or a Debian package whose path contains one of `patterns`: path -> bytes.

    Paths are without the first folder (npm's `package/`), as in the alignment table.
    """
    if archive.suffix == ".deb":
        tarball = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True).stdout
    else:
        tarball = archive.read_bytes()
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as tar:
        for member in tar:
            if member.isfile() and any(pattern in member.name for pattern in patterns):
                found[member.name.partition("/")[2]] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def _private_lists(folder: Path) -> list[str]:
    """apt options that keep package lists and caches under `folder`, for any user, without changing the system's."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    options = (f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache", "Debug::NoLocking=true")
    return [argument for option in options for argument in ("-o", option)]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {TIMEOUT} s")


def _reason(stderr: str) -> str:
    """The most informative line of a client's error output, without its prefix."""
    lines = [line.removeprefix("npm").strip() for line in stderr.splitlines() if line.strip()]
    lines = [line.removeprefix("ERR!").removeprefix("error").removeprefix("E:").strip() for line in lines]
    informative = [line for line in lines if line.startswith(("code ", "network ", "Version", "Unable", "Failed"))]
    return (informative or lines or ["no reason given"])[0][:160]
