"""`impasto studio`."""

from pathlib import Path
from typing import Annotated

import tyro

from impasto.cli.console import Result, parse


def studio(args: list[str]) -> Result:
    """Train, choose, mix and compare in the browser."""

    def studio(
        host: str = "127.0.0.1",
        port: int = 7860,
        workspace: Path = Path("studio"),
        auth: Annotated[str | None, tyro.conf.arg(metavar="USER:PASSWORD")] = None,
        share: bool = False,
    ) -> Result:
        """Open the studio: a web page with a queue of runs.

        Args:
            host: Address that it listens on; another one than this machine's own needs --auth.
            port: Port.
            workspace: Folder of references, styles, images and the queue.
            auth: Name and password that the page asks for.
            share: Make it reachable by a public address of gradio's servers; needs --auth.
        """
        from impasto.studio.app import serve

        serve(host, port, workspace, auth, share)
        return {}

    return parse(studio, args, "studio")
