"""Files: who may read them is the umask's to say."""

import subprocess
import sys

import pytest

WRITE = """
import os, sys
os.umask(int(sys.argv[1], 8))
from impasto.files import atomic
with atomic(sys.argv[2]) as file:
    file.write_text("x")
assert os.umask(0) == int(sys.argv[1], 8)
"""


@pytest.mark.parametrize(("umask", "mode"), [("077", 0o600), ("027", 0o640), ("022", 0o644), ("002", 0o664)])
def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path, umask, mode):
    """A file that was there before as well; the umask stays what it is."""
    (tmp_path / "a.txt").touch(0o604)
    subprocess.run([sys.executable, "-c", WRITE, umask, str(tmp_path / "a.txt")], check=True)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode
