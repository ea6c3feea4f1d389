"""The settings page is current, complete, and its ranges are true."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import write_settings  # noqa: E402  # pyright: ignore[reportMissingImports]

from impasto.config import AXES, SHORT, TOP  # noqa: E402
from impasto.errors import UserError  # noqa: E402


def test_settings_page_is_current():
    written = write_settings.PAGE.read_text(encoding="utf-8")
    assert write_settings.page() == written, "run: python tools/write_settings.py"


def test_settings_page_has_every_section_and_key():
    text = write_settings.page()
    for key in (*TOP, *SHORT):
        assert f"| `{key}` | `--{key.replace('_', '-')}`" in text
    for axis, (rows, _, _) in AXES.items():
        for name in rows:
            assert f"### {axis} {name}\n" in text


def test_settings_page_needs_no_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import write_settings; write_settings.page()"
    check = "; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code + check], check=False).returncode == 0


@pytest.mark.parametrize(("law", "key"), [("StyleFriendly", "std"), ("LogitNormal", "std"), ("LogitNormal", "shift")])
def test_ranges_that_the_laws_check_are_as_stated(law, key):
    from impasto.noise import laws

    assert write_settings.CHECKED_LATER[f"noise.{key}"] == "> 0"
    getattr(laws, law)(**{key: 1e-3})
    with pytest.raises(UserError, match="above 0"):
        getattr(laws, law)(**{key: 0.0})
