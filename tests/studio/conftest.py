"""A studio in this process, with processes that only pretend, and a browser."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium")


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
    from workspace_files import FAKE, fill, free_port

    from impasto.studio.app import running

    root = tmp_path_factory.mktemp("studio") / "workspace"
    with running(root, port=free_port(), command=FAKE) as found:
        fill(root)
        yield found
