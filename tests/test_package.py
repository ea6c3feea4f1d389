"""What `import impasto` gives, and when."""

import subprocess
import sys

import pytest

import impasto


def test_documented_names():
    from impasto.config import TrainConfig, resolve
    from impasto.generation import generate
    from impasto.styles.load import load_style
    from impasto.training.train import train

    assert impasto.load_style is load_style and impasto.TrainConfig is TrainConfig and impasto.resolve is resolve
    assert impasto.train is train and impasto.generate is generate
    assert {"load_style", "train", "generate", "UserError"} <= set(dir(impasto))
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        impasto.tarin  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, impasto; print(sorted({'torch', 'diffusers', 'numpy', 'PIL', 'tyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_module_can_load_pickles():
    """No `torch.load`, `torch.save` or `pickle` in the package, but for weights alone in `impasto weights convert`:
    states and styles are safetensors and JSON."""
    from impasto.files import PACKAGE

    for file in PACKAGE.rglob("*.py"):
        source = file.read_text()
        if file.parts[-2:] == ("interop", "pickles.py"):  # impasto weights convert, in a process of its own
            safe = 'torch.load(file, map_location="cpu", weights_only=True)'
            assert source.count("torch.load(") == source.count(safe) == 1 and "torch.save(" not in source
            continue
        assert not any(word in source for word in ("torch.load(", "torch.save(", "import pickle")), file
