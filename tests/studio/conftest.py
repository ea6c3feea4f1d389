"""A studio in this process, with processes that only pretend, and a browser."""

import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FAKE = (sys.executable, str(Path(__file__).with_name("fake_command.py")))
"""Stands for `python -m impasto.cli.main`: writes what the command would, in no time."""
CHROMIUM = shutil.which("chromium")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def browser():
    """Chromium, one for all tests."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    """(the studio, its address) with a style, a run with candidates, an image and concepts in its workspace."""
    pytest.importorskip("gradio")
    from workspace_files import fill

    from impasto.studio.app import running

    root = tmp_path_factory.mktemp("studio") / "workspace"
    commands = {"compare", *(["votes"] if find_spec("impasto.evaluation.votes") else [])}
    with running(root, port=free_port(), commands=commands, command=FAKE) as found:
        fill(root)
        yield found
