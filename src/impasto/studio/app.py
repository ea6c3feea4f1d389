"""The page of the studio: its tabs, and the server."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from impasto.errors import UserError, extra
from impasto.failures import signal_handlers
from impasto.studio.queue import Queue
from impasto.studio.worker import COMMAND, Worker
from impasto.studio.workspace import MAX_BYTES, Workspace

SERVED = ("references", "styles", "images", "exports")
"""Folders of the workspace whose files the server hands out; gradio's own uploads and copies of them beside these."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_access(host: str, auth: str | None, share: bool) -> tuple[str, str] | None:
    """(user, password) of `auth`, "user:password". Raises UserError where the page could be reached from other machines
    without one."""
    user, _, password = (auth or "").partition(":")
    if auth is not None and not (user and password):
        raise UserError("--auth must be USER:PASSWORD, both not empty")
    if auth is None and (share or host not in LOOPBACK):
        what = "--share" if share else f"--host {host}"
        raise UserError(f"{what} opens the studio to other machines: give --auth USER:PASSWORD as well")
    return None if auth is None else (user, password)


def build(studio):
    """The page, as gradio.Blocks."""
    import gradio as gr

    from impasto.report.html import Html, el
    from impasto.studio.choose_tabs import concepts_tab, select_tab
    from impasto.studio.compare_tab import compare_tab
    from impasto.studio.generate_tab import generate_tab
    from impasto.studio.noise_tab import noise_tab
    from impasto.studio.queue import RUNNING, WAITING
    from impasto.studio.styles_tab import styles_tab
    from impasto.studio.train_tab import train_tab
    from impasto.studio.vote_tab import vote_tab

    def head() -> Html:
        jobs = studio.queue.jobs()
        counts = [f"{sum(job.state == state for job in jobs)} {state}" for state in (RUNNING, WAITING)]
        return el("div", el("h1", "impasto studio"), el("span", ", ".join(counts)), class_="head")

    with gr.Blocks(
        title="impasto studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)
    ) as page:
        top = gr.HTML(head)
        gr.Timer(2).tick(head, None, top, show_progress="hidden")
        timers = {name: gr.Timer(2, active=name == "Train") for name in ("Train", "Generate", "Concepts", "Noise")}
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train"):
                train_tab(studio, timers["Train"])
            with gr.Tab("Styles", id="styles") as tab:
                styles_tab(studio, tab)
            with gr.Tab("Generate", id="generate") as tab:
                generate_tab(studio, tab, timers["Generate"])
            with gr.Tab("Select", id="select") as tab:
                select_tab(studio, tab)
            with gr.Tab("Concepts", id="concepts") as tab:
                concepts_tab(studio, tab, timers["Concepts"])
            with gr.Tab("Noise", id="noise") as tab:
                noise_tab(studio, tab, timers["Noise"])
            with gr.Tab("Compare", id="compare") as tab:
                compare_tab(studio, tab)
            with gr.Tab("Vote", id="vote") as tab:
                vote_tab(studio, tab)

        def activate_timer(event: gr.SelectData) -> list[Any]:
            """Poll for the selected tab alone."""
            return [gr.Timer(active=name == event.value) for name in timers]

        tabs.select(activate_timer, None, list(timers.values()), show_progress="hidden")
    return page


def serve(
    host: str = "127.0.0.1",
    port: int = 7860,
    workspace: Path = Path("studio"),
    auth: str | None = None,
    share: bool = False,
) -> None:
    """Run the studio until Ctrl-C; processes of the queue go on after that.

    Raises UserError without gradio, for an open host without `auth`, and where another studio has the workspace.
    """
    login = check_access(host, auth, share)
    ended = threading.Event()
    with running(workspace, host, port, login, share) as (_, address):
        print(f"impasto studio: {address} (workspace {workspace}); Ctrl-C ends it, runs go on", flush=True)
        with signal_handlers(lambda *_: ended.set(), signal.SIGINT, signal.SIGTERM):
            import impasto.styles.convert  # noqa: F401  # seconds, which the first visitor need not wait for

            ended.wait()


@contextmanager
def running(
    workspace: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    login: tuple[str, str] | None = None,
    share: bool = False,
    command: Sequence[str] = COMMAND,
) -> Iterator[tuple[Any, str]]:
    """(the `page.Studio`, its address) while the server and the worker run. command: of the processes of the queue.
    Raises UserError as `serve`."""
    extra("gradio", "studio", "impasto studio")
    place = Workspace(workspace)
    os.environ["GRADIO_TEMP_DIR"] = str(place.root / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    lock = FileLock(place.private / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another studio runs in {str(workspace)!r}: use that one, or another --workspace") from None
    from impasto.studio.page import Studio, style_sheet, theme
    from impasto.studio.vote_tab import KEYS

    queue = Queue(place.private / "queue.sqlite")
    worker = Worker(queue, place.root, place.private / "jobs", command)
    studio = Studio(place, queue, worker)
    page = build(studio)
    page.queue(default_concurrency_limit=8)
    try:
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            auth=login,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(place.root / name) for name in SERVED],
            blocked_paths=[str(place.private)],
            max_file_size=MAX_BYTES,
            footer_links=[],
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            theme=theme(),
            css=style_sheet(),
            head=KEYS,
        )
        worker.start()
        yield studio, public or local
    except OSError as error:
        raise UserError(f"--port {port} cannot be used ({error}): choose another one") from None
    finally:
        worker.close()
        page.close(verbose=False)
        lock.release()
