"""PEFT's own generic tests, unedited, run with rows of StyleInject instead of PEFT's methods.

    python tools/peft_generic_tests.py --out docs/results/styleinject/peft-tests.json

Fetches the source release of the installed PEFT from PyPI, which holds the tests, into a temporary folder and runs
pytest there with this file as a plugin: every table that PEFT's tests are parametrised over is replaced by ours, and
tests without a row of ours are left out. There is no Hub here, so the decoder and the Stable Diffusion pipeline are
small random ones. The result says by file what passed, what PEFT's own conditions skip, what failed, and what does not
apply, with the reason.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Generator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("custom_models", "config", "decoder_models", "stablediffusion")
REASONS = {  # words of the error in which a test ends that does not apply, and why
    "cannot be merged": "merging: what StyleInject adds depends on each image",
    "Can't find 'adapter_config.json' at 'peft-internal-testing": "reads a file of the Hub, which is not reached here",
}
SILENT = (
    "test_only_params_are_updated[Conv2d",
    "weights that no gradient reaches: PEFT's convolution has one output position, where AdaIN does nothing, and its "
    "inputs, up to 89, saturate the router",
)
SMALL = {"r": 4, "n": 3}


def custom_rows(config: type) -> list[tuple[str, str, type, dict[str, Any]]]:
    """Names, models of PEFT's test_custom_models, settings. An MLP has one token per image, where AdaIN is silent."""
    mlp = {
        "1": {"target_modules": "lin0"},
        "2": {"target_modules": ["lin1"]},
        "3": {"target_modules": ["lin0", "lin1"]},
        "4": {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
        "5": {"target_modules": ["lin0"], "lora_alpha": 3.0},
        "6 token": {"target_modules": ["lin0", "lin1"], "router_pool": "token"},
        "7 LoRA": {"target_modules": ["lin0"], "dma": False},
    }
    convolution = {
        "Conv2d 1": ("Conv2d", {"target_modules": ["conv2d"]}),
        "Conv2d 2": ("Conv2d", {"target_modules": ["conv2d"], "hyper": "additive"}),
        "Conv2d 3": ("Conv2d", {"target_modules": ["conv2d"], "router_pool": "token"}),
        "Conv2d 1x1": ("Conv2d1x1", {"target_modules": ["conv2d"]}),
        "Conv2d2": ("Conv2d2", {"target_modules": ["lin0", "conv2d"], "sta": False}),
    }
    rows = [(f"Vanilla MLP {name}", "MLP", config, {**SMALL, "sta": False, **own}) for name, own in mlp.items()]
    return rows + [(name, model, config, {**SMALL, **own}) for name, (model, own) in convolution.items()]


def tables(config: type, models: Path) -> dict[str, dict[str, list[Any]]]:
    """By file and table of PEFT's tests: our rows."""
    init = {**SMALL, "sta": False, "init_weights": False}
    two = [
        ("StyleInject Same", "styleinject", config, *[{**init, "target_modules": ["lin0"]}] * 2),
        ("StyleInject Different", "styleinject", config, *[{**init, "target_modules": [t]} for t in ("lin0", "lin1")]),
    ]
    unet = {**SMALL, "target_modules": ["to_q", "to_v", "proj_in"], "init_weights": False}
    text = {**SMALL, "target_modules": ["q_proj", "v_proj"], "init_weights": False}
    return {
        "custom_models": {"TEST_CASES": custom_rows(config), "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": two},
        "config": {"ALL_CONFIG_CLASSES": [(config, {})], "LAYER_INDEXING_CONFIG_CLASSES": [(config, {})]},
        "decoder_models": {
            "ALL_CONFIGS": [(config, {"task_type": "CAUSAL_LM", **SMALL, "target_modules": ["q_proj", "v_proj"]})],
            "PEFT_DECODER_MODELS_TO_TEST": [str(models / "opt")],
            "SMALL_GRID_MODELS": [str(models / "opt")],
        },
        "stablediffusion": {"DIFFUSERS_CONFIGS": [(config, {"text_encoder": text, "unet": unet})]},
    }


# as a pytest plugin


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Where the tests are about to be read: replace the rows of their parametrisations."""
    from importlib import import_module

    from impasto.adapters.styleinject.tuner import StyleInjectConfig

    name = module_path.stem.removeprefix("test_")
    if name != os.environ["FILE"]:
        return
    module = import_module(f"tests.{module_path.stem}")
    for table, rows in tables(StyleInjectConfig, Path(os.environ["MODELS"]))[name].items():
        old = getattr(module, table)
        for part in vars(module).values():
            for test in [part, *vars(part).values()] if isinstance(part, type) else [part]:
                marks = getattr(test, "pytestmark", None)
                if isinstance(marks, list) and callable(test):
                    test.pytestmark = [  # pyright: ignore[reportFunctionMemberAccess]
                        pytest.mark.parametrize(mark.args[0], rows, **mark.kwargs).mark
                        if mark.name == "parametrize" and mark.args[1] is old
                        else mark
                        for mark in marks
                    ]
    if name == "stablediffusion":
        redirect_pipeline(module.StableDiffusionPipeline)


def redirect_pipeline(pipeline: Any) -> None:
    """PEFT's tests load a small pipeline from the Hub: ours has its place."""
    load = pipeline.from_pretrained
    pipeline.from_pretrained = lambda *_, **options: load(os.environ["MODELS"] + "/sd15", **options)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that have a row of ours."""
    from impasto.adapters.styleinject.tuner import StyleInjectConfig

    rows = {item: vars(item).get("callspec") for item in items}
    items[:] = [item for item, row in rows.items() if row and StyleInjectConfig in row.params.values()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that ends in one of REASONS is skipped for it."""
    report = yield
    reason = next((why for words, why in REASONS.items() if call.excinfo and words in str(call.excinfo.value)), None)
    if report.failed and SILENT[0] in report.nodeid:
        reason = SILENT[1]
    if report.failed and reason:
        report.outcome, report.longrepr = "skipped", ("", 0, f"{APPLIES_NOT}{reason}")
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write what happened to RESULT."""
    stats = terminalreporter.stats
    told: dict[str, Any] = {kind: len(stats.get(kind, ())) for kind in ("passed", "failed", "error")}
    told["failed tests"] = sorted(report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ()))
    skipped: dict[str, Counter[str]] = defaultdict(Counter)
    for report in stats.get("skipped", ()):
        skipped[report.longrepr[2]][report.nodeid.rpartition("::")[2].partition("[")[0]] += 1
    for key, ours in (("does not apply", True), ("skipped by PEFT's own conditions", False)):
        of = {why: tests for why, tests in sorted(skipped.items()) if why.startswith(APPLIES_NOT) == ours}
        told[key] = {why.removeprefix(APPLIES_NOT).removeprefix("Skipped: "): tests for why, tests in of.items()}
    Path(os.environ["RESULT"]).write_text(json.dumps(told))


APPLIES_NOT = "does not apply: "


# as a command


def source(folder: Path) -> Path:
    """The installed PEFT's source release, unpacked in `folder`."""
    release = f"peft=={version('peft')}"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    subprocess.run([*pip, "-d", str(folder), release], check=True)
    with tarfile.open(next(folder.glob("peft-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    root = next(path for path in folder.glob("peft-*") if path.is_dir())
    (root / "tests" / "__init__.py").touch()  # in the repository, not in the release
    return root


def make_models(folder: Path) -> None:
    """A small random OPT and Stable Diffusion pipeline."""
    from transformers import OPTConfig, OPTForCausalLM

    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import sd15_folder  # pyright: ignore[reportMissingImports]

    size: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
    }
    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    OPTForCausalLM(OPTConfig(**size, **special, word_embed_proj_dim=16)).save_pretrained(folder / "opt")
    sd15_folder(folder / "sd15")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", choices=FILES, default=FILES)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    told: dict[str, Any] = {"peft": version("peft"), "files": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, result = source(folder), folder / "result.json"
        make_models(folder)
        paths = [str(ROOT / "scripts"), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        own = {"MODELS": name, "RESULT": str(result), "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        if find_spec("datasets") is None:  # imported by PEFT's helpers, used by tests on real data alone
            (root / "datasets.py").write_text("load_dataset = None\n")
        for file in args.files:
            pytest_ = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(root), "--tb=line"]
            options = ["-p", Path(__file__).stem, "-W", "ignore", "-p", "no:cacheprovider", f"tests/test_{file}.py"]
            result.unlink(missing_ok=True)
            subprocess.run([*pytest_, *options], cwd=root, env=os.environ | own | {"FILE": file}, check=False)
            told["files"][f"test_{file}.py"] = json.loads(result.read_text())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
