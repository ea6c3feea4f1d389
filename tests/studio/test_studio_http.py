"""What the server hands out, asked by HTTP."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio")


def fetch(address: str, path: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """(status, body). data: posts."""
    request = urllib.request.Request(address.rstrip("/") + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_file_route_serves_the_images_of_the_workspace(studio):
    found, address = studio
    assert fetch(address, f"/gradio_api/file={found.workspace.root}/styles/ink/reference.png")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/etc/passwd",
            "{root}/.studio/queue.sqlite",
            "{root}/.studio/jobs/1.log",
            "{root}/concepts/sun/concepts.json",
        ),
        *(
            "{root}/styles/../.studio/queue.sqlite",
            "{root}/styles/../../../../../../../../etc/passwd",
            "pyproject.toml",
        ),
        *("{root}/styles/%2e%2e/.studio/queue.sqlite", "{root}/../outside.txt", "{root}/styles/out/secret.txt"),
        *("file:///etc/passwd", "~/.bashrc", "/proc/self/environ", "{package}/__init__.py"),
    ],
)
def test_file_route_of_other_files_is_refused(studio, path):
    import impasto

    found, address = studio
    root = found.workspace.root
    (root.parent / "outside.txt").write_text("secret")
    if not (link := root / "styles" / "out").exists():
        (root.parent / "elsewhere").mkdir()
        (root.parent / "elsewhere" / "secret.txt").write_text("secret")
        link.symlink_to(root.parent / "elsewhere")
    status, body = fetch(address, f"/gradio_api/file={path.format(root=root, package=Path(impasto.__file__).parent)}")
    assert status in (403, 404) and "secret" not in body.replace("secret.txt", "")


def test_upload_of_too_many_bytes_is_refused(studio):
    from impasto.studio.workspace import MAX_BYTES

    found, address = studio
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body += bytes(MAX_BYTES + 1) + b"\r\n--x--\r\n"
    status, _ = fetch(address, "/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 413
    assert all(
        file.stat().st_size <= MAX_BYTES for file in (found.workspace.root / "uploads").rglob("*") if file.is_file()
    )


def test_request_of_another_site_is_refused(studio):
    _, address = studio
    request = urllib.request.Request(f"{address}config", headers={"Origin": "https://evil.example"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") != "https://evil.example"


def call(address: str, name: str, data: list) -> str:
    """The answer of an event of the page, as a script would ask for it."""
    status, body = fetch(
        address, f"/gradio_api/call/{name}", json.dumps({"data": data}).encode(), **{"Content-Type": "application/json"}
    )
    if status != 200:
        return body
    return fetch(address, f"/gradio_api/call/{name}/{json.loads(body)['event_id']}")[1]


def test_event_with_a_file_or_name_outside_the_workspace_is_refused(studio):
    found, address = studio
    assert "event: complete" in call(address, "describe_recipe", ["style-friendly"])
    passwd = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    names = [one["api_name"] for one in json.loads(fetch(address, "/config")[1])["dependencies"] if one["api_name"]]
    for name, data in (
        *(("fill", [passwd]), ("upload", [[passwd], []])),
        *((event, ["../../etc"]) for event in ("show", "show_1", "show_2", "base_of")),
    ):
        assert name in names, names
        body = call(address, name, data)
        assert "event: error" in body and "root:" not in body and str(found.workspace.root) not in body, (name, body)


def test_page_with_a_login_answers_nobody_else(tmp_path):
    from workspace_files import FAKE, free_port

    from impasto.studio.app import running

    with running(tmp_path / "w", port=free_port(), login=("me", "secret"), command=FAKE) as (found, address):
        (found.workspace.root / "references" / "a.png").write_bytes(b"x")
        for path in ("/config", f"/gradio_api/file={found.workspace.root}/references/a.png"):
            assert fetch(address, path)[0] == 401
        assert fetch(address, "/login", b"username=me&password=wrong")[0] == 400
