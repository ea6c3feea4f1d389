"""`impasto adapters`: counts of trained parameters (StyleInject, Table IV), and what is refused."""

import json
import subprocess
import sys

import pytest

from impasto.adapters import ADAPTERS
from impasto.adapters.base import adapter_of
from impasto.adapters.config import FullFineTuning, FullRankLoRA, KVBottleneck, LoRA, StyleDrop, StyleInject
from impasto.bases.loader import load
from impasto.cli import main as cli


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["impasto", "adapters", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err.splitlines()

    return call


STYLEINJECT = ("count", "--adapter", "styleinject", "--family", "sd15", "--rank", 32)


@pytest.mark.parametrize(
    ("flags", "parameters"),
    [
        ((*STYLEINJECT, "--n", 1), 3_338_304),
        ((*STYLEINJECT, "--n", 4), 8_411_136),
        ((*STYLEINJECT, "--adapter.n", 16), 28_702_464),
        ((*STYLEINJECT, "--n", 1, "--variant", "paper-text"), 3_263_616),
        ((*STYLEINJECT, "--n", 4, "--variant", "paper-text"), 5_809_536),
        ((*STYLEINJECT, "--n", 16, "--variant", "paper-text"), 15_993_216),
        (("count", "--family", "sd15", "--targets", "to_q", "to_v"), 3_188_736),
        (("count", "--family", "sd15", "--targets", "to_q", "to_v", "--adapter.rank", 128), 12_754_944),
        (("count", "--family", "sd15", "--targets", "to_q", "to_v", "--rank=512"), 51_019_776),
    ],
)
def test_count_on_sd15_is_table_iv(run, flags, parameters):
    code, out, _ = run(*flags, "--json")
    found = json.loads(out[-1])
    assert code == 0 and (found["parameters"], found["bytes"]) == (parameters, 4 * parameters)
    assert found["share"] == parameters / 859_520_964
    assert sum(row["parameters"] for row in found["groups"]) == parameters
    assert sum(row["layers"] for row in found["groups"]) == 64


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("sd15", {("down_blocks", "conv1"): 8, ("mid_block", "conv2"): 2, ("up_blocks", "upsamplers.0.conv"): 3}),
        ("sdxl", {("down_blocks", "conv1"): 6, ("mid_block", "conv2"): 2, ("up_blocks", "upsamplers.0.conv"): 2}),
    ],
)
def test_groups_are_layers_of_one_name(run, family, groups):
    found = json.loads(run("count", "--family", family, "--targets", "convolution", "--json")[1][-1])
    rows = {(row["part"], row["layer"]): row["layers"] for row in found["groups"]}
    assert groups.items() <= rows.items() and len(rows) == 8


def test_groups_of_flux_keep_single_blocks_apart(run):
    found = json.loads(run("count", "--family", "flux", "--adapter", "styleinject", "--json")[1][-1])
    rows = {(row["part"], row["layer"]): row["layers"] for row in found["groups"]}
    double, single = ("transformer_blocks", 19), ("single_transformer_blocks", 38)
    assert rows == {(part, f"attn.{name}"): n for part, n in (double, single) for name in ("to_q", "to_v")}


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_count_is_what_is_attached(run, tiny_sd15, name):
    settings = {
        "lora": LoRA(rank=3, targets=("attention", "convolution")),
        "styleinject": StyleInject(rank=3, n=4, targets=("to_q", "conv1")),
        "kv-bottleneck": KVBottleneck(dim=2, shared=True),
        "full": FullFineTuning(),
        "full-rank": FullRankLoRA(targets=("cross_attention_kv",)),
        "styledrop": StyleDrop(dim=2, shared=True),
    }[name]
    flags = {
        "lora": ("--rank", 3, "--targets", "attention", "convolution"),
        "styleinject": ("--rank", 3, "--n", 4, "--targets", "to_q", "conv1"),
        "kv-bottleneck": ("--dim", 2, "--shared"),
        "full": (),
        "full-rank": ("--targets", "cross_attention_kv"),
        "styledrop": ("--dim", 2, "--shared"),
    }[name]
    found = json.loads(run("count", "--adapter", name, "--base", tiny_sd15, *flags, "--json")[1][-1])
    trained = adapter_of(settings).attach(load(str(tiny_sd15), device="cpu"), settings, 0)
    assert found["parameters"] == sum(p.numel() for p in trained.values()) > 0
    assert found["parameters"] == sum(row["parameters"] for row in found["groups"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*STYLEINJECT, "--targets", "to_w"), "target 'to_w' matches no layer"),
        ((*STYLEINJECT, "--n", 0), "adapter.n must be above 0, not 0"),
        ((*STYLEINJECT[:-1], 0), "adapter.rank must be above 0, not 0"),
        (("count", "--rank", -1, "--family", "sd15"), "rank must be above 0, not -1"),
        (("count", "--family", "sd-15"), "unknown family 'sd-15': did you mean 'sd15'"),
        (("count", "--adapter", "styleinjekt", "--family", "sd15"), "unknown adapter 'styleinjekt': did you mean"),
        (("count",), "give one of --family (sd15, for example) and --base"),
        (("count", "--family", "sd15", "--base", "mini-sd15"), "give one of --family"),
        (("count", "--base", "nowhere/at-all"), "not available without network"),
        (("cuont",), "unknown action 'cuont' of adapters: did you mean 'count'"),
    ],
)
def test_bad_input_is_one_line(run, flags, message):
    code, out, err = run(*flags)
    assert code == 2 and len(err) == 1 and message in err[0] and not out


def test_list_has_every_adapter(run):
    code, out, _ = run("list")
    assert code == 0 and [line.split()[0] for line in out] == list(ADAPTERS)
    assert json.loads(run("list", "--json")[1][-1]) == {"adapters": {k: row.about for k, row in ADAPTERS.items()}}


def test_help_of_count_needs_no_torch():
    code = "import sys, impasto.cli.main; sys.argv = ['impasto', 'adapters', 'count', '--adapter', 'styleinject', '-h']"
    code += "\ntry: impasto.cli.main.main()\n"
    code += "finally: print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == "[]" and "--router-pool" in out
