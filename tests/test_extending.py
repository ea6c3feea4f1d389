"""The Python blocks of docs/extending.md run: those that begin with a file name as files, the others on tiny bases."""

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from impasto.adapters import ADAPTERS
from impasto.bases.loader import load
from impasto.evaluation.scores import SCORES
from impasto.families import FAMILIES
from impasto.guidance import GUIDANCES
from impasto.noise import NOISE_LAWS

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
TABLES: tuple[dict[str, Any], ...] = (NOISE_LAWS, ADAPTERS, GUIDANCES, SCORES, FAMILIES)
SECTION = re.compile(r"^## (?P<title>.+?)\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    found["title"]: blocks
    for found in SECTION.finditer(PAGE.read_text(encoding="utf-8"))
    if (blocks := BLOCK.findall(found["text"]))
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An own folder with the files of all examples, on the path of imports; the tables afterwards as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in (block for blocks in EXAMPLES.values() for block in blocks):
        if found := re.match(r"# (\w+\.py)\n", block):
            Path(found[1]).write_text(block, encoding="utf-8")
    before = [dict(table) for table in TABLES]
    yield tmp_path
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


def test_page_has_an_example_of_each_kind():
    assert list(EXAMPLES) == ["A noise law", "An adapter", "A guidance", "A score", "A family"]
    assert all(len(blocks) == 2 and "assert" in blocks[1] for blocks in EXAMPLES.values())


@pytest.mark.filterwarnings("ignore:after 1 steps")
@pytest.mark.parametrize("title", EXAMPLES)
def test_example_runs(title, workspace, tiny_sd3, tiny_sd15, picture):
    shutil.copyfile(picture, "ref.png")
    code = EXAMPLES[title][1]
    for name, folder in (("mini-sd3", tiny_sd3), ("mini-sd15", tiny_sd15)):
        code = code.replace(f'"{name}"', repr(str(folder)))
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {"__name__": "example"})


def test_example_of_a_law_is_a_distribution(workspace):
    law = importlib.import_module("laplace_noise").Laplace(-2.0, 1.5)
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert torch.allclose(law.cdf(law.quantile(p)), p, atol=1e-12)
    lam = torch.linspace(-60, 60, 240001, dtype=torch.float64)
    assert torch.trapezoid(law.pdf(lam), lam).item() == pytest.approx(1, abs=1e-6)
    below = lam <= -1.0
    share = torch.trapezoid(law.pdf(lam[below]), lam[below]).item()
    assert share == pytest.approx(law.cdf(lam[below][-1]).item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "sd15", "flux"])
def test_example_of_an_adapter_counts_its_weights(kind, workspace, request):
    dora = importlib.import_module("dora")
    family = load(str(request.getfixturevalue(f"tiny_{kind}")), device="cpu", precision="fp32")
    expected = dora.count(family, dora.DoRA(rank=3), family.denoiser)
    named = dora.attach(family, dora.DoRA(rank=3), 0)
    assert sum(p.numel() for p in named.values()) == expected > 0
