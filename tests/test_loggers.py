"""Loggers beside metrics.jsonl."""

import pytest

from impasto.config import make_config
from impasto.errors import UserError
from impasto.training.run_folder import RunFolder, check_wandb
from impasto.training.train import dry_run, train

INPUTS = {"base_sha256": "b", "references_sha256": []}


def test_wandb_offline(tmp_path, monkeypatch):
    """Nothing leaves the machine: an offline run in the style folder, with the values in it."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = RunFolder(make_config(out=tmp_path / "run", wandb=True, tensorboard=False), INPUTS)
    run.resume()
    for step in (1, 2):
        run.log({"step": step, "loss": 0.125 * step, "lam": [1.0]})
    run.close()
    wandb.teardown()  # its service has written everything when this returns
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert b"loss" in file.read_bytes() and b"0.25" in file.read_bytes()


def test_wandb_without_a_login_is_told_before_anything_is_read(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # what it knows of the environment
    config = make_config(base="nowhere/at-all", out=tmp_path / "run", wandb=True)
    told = r"--wandb cannot be had \(.*\): `wandb login`, or WANDB_MODE=offline"
    for begin in (dry_run, train):
        with pytest.raises(UserError, match=told):
            begin(config)
    assert not config.out.exists()
    run = RunFolder(config, INPUTS)
    with pytest.raises(UserError, match=told):  # where it could not be asked before
        run.resume()
    run.close()
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    check_wandb()
    wandb.teardown()


def test_wandb_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    run = RunFolder(make_config(out=tmp_path / "run", wandb=True, tensorboard=False), INPUTS)
    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(UserError, match=r"--wandb needs wandb: pip install 'impasto\[wandb\]'"):
        run.resume()
    run.close()
