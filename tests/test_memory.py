"""The planner: its sizes against known counts and published figures, and what it chooses."""

import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from impasto import devices
from impasto.adapters import lora
from impasto.adapters.config import LoRA
from impasto.bases import loader
from impasto.config import change, make_config, resolve
from impasto.devices import GB, Device, peak
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.execution import memory
from impasto.execution.apply import ExecutionPlan
from impasto.execution.memory import Size, choose
from impasto.training.train import dry_run

GIB = 2**30
SDXL = {"block_out_channels": [320, 640, 1280], "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10]}
SDXL |= {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]}
SD3_MEDIUM = {"num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24, "patch_size": 2}
PAPER = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp", "proj_out")
CONFIG = make_config(targets=PAPER, rank=32, batch=1, accumulate=4, steps=300, size=1024)


@pytest.fixture(scope="module")
def flux() -> Size:
    """FLUX.1-dev at 1024 px, on the meta device."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    return memory.size_of(model, SimpleNamespace(kinds=(), modules=None), CONFIG)


def card(gigabytes, name="NVIDIA H200"):
    return Device("cuda", name, gigabytes * GB, peak(name))


def test_flux_in_numbers(flux):
    """methods.md E16; market.md 2.4: 171 TFLOP forward and backward at 1024 px, 245 with full checkpointing."""
    assert (flux.weights, flux.adapter, flux.blocks) == (11_901_408_320, 89_753_600, 57)
    assert 2 * flux.linear + 3.5 * flux.attention == pytest.approx(171e12, rel=0.03)
    assert 3 * flux.linear + 4.5 * flux.attention == pytest.approx(245e12, rel=0.03)
    assert 0.98 < flux.block_weights / flux.weights < 1


def test_muse_in_numbers(tiny_muse):
    """amused-256: 603M weights, 22 layers, and no gradient checkpointing to choose."""
    from diffusers import UVit2DModel

    with torch.device("meta"):
        model = UVit2DModel(num_attention_heads=16)
    config = change(CONFIG, targets=("attn2.to_k", "attn2.to_v"), size=256, batch=8)
    size = memory.size_of(model, SimpleNamespace(kinds=(), modules=None), config, 16)
    assert size.weights == pytest.approx(603e6, rel=0.01) and size.blocks == 22 + 12
    assert size.adapter == 32 * (1024 + 1024) * 2 * 22 + 32 * (768 + 768) * 2 * 6
    assert 0.5 < size.linear / (2 * 256 * size.weights) < 1  # text, modulation and the embedding see fewer places
    small, large = (choose(config, card(room), size, "bf16") for room in (4, 80))
    assert small.checkpointing == large.checkpointing == 0 and not small.offload and small.quantize != "none"
    with pytest.raises(UserError, match="has no gradient checkpointing"):
        choose(change(config, checkpointing=1.0), card(80), size, "bf16")
    family = loader.load(str(tiny_muse), device="cpu")
    assert memory.size_of(memory.meta_model(family), family, change(CONFIG, targets=("attention",)), 2).adapter > 0


@pytest.mark.parametrize("targets", [("attention",), ("attention", "convolution"), ("conv_in", "ff.net.2")])
def test_the_adapter_that_is_trained_is_the_one_that_is_planned(tiny_sd15, targets):
    family = loader.load(str(tiny_sd15), device="cpu")
    size = memory.size_of(memory.meta_model(family), family, change(CONFIG, targets=targets, rank=3))
    made = lora.add(family, LoRA(rank=3, alpha=None, targets=targets), 0)
    assert size.adapter == sum(p.numel() for p in made.values())


def test_activations_against_published_figures():
    """SD3-medium, batch 3: 34.6 GiB without and 7.7 with checkpointing; SDXL: 13 and 6.5 (SimpleTuner's table)."""
    blocks, kept, inputs, _ = memory.stream_blocks(SD3_MEDIUM, 128)
    assert blocks == 24 and 3 * (kept - inputs - kept / blocks) / GIB == pytest.approx(34.6 - 7.7, rel=0.1)
    blocks, kept, inputs, _ = memory.unet_blocks(SDXL, 128)
    assert blocks == 70 + 17 and (kept - inputs) / GIB == pytest.approx(13 - 6.5, rel=0.1)


@pytest.fixture
def every_package(monkeypatch):
    monkeypatch.setattr(memory, "find_spec", lambda name: object())
    for module in (memory, running):
        monkeypatch.setattr(module, "no_compiler", lambda kind: None)


def test_the_fewest_trades_that_fit(flux, every_package):
    """24 GB: 4 bits; 48: as it is, three blocks of four computed again; 80: one of four; 141: nothing is traded."""
    chosen = {g: choose(CONFIG, card(g), flux, "bf16") for g in (24, 48, 80, 141)}
    assert [chosen[g].quantize != "none" for g in (24, 48, 80, 141)] == [True, False, False, False]
    assert [chosen[g].checkpointing for g in (48, 80, 141)] == [0.75, 0.25, 0.0]
    for g, how in chosen.items():
        assert memory.memory(flux, CONFIG, how) <= 0.92 * g * GB and not how.offload
        assert "a step takes about" in "; ".join(how.why) and f"of {g} GB (NVIDIA H200)" in how.why[0]
    assert not choose(change(CONFIG, steps=100), card(141), flux, "bf16").compile
    assert choose(change(CONFIG, steps=2000), card(141), flux, "bf16").compile
    assert "compiled" in choose(change(CONFIG, steps=2000), card(141), flux, "bf16").why[-1]


def test_without_the_extra_it_offloads_and_says_when_nothing_fits(flux, monkeypatch):
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    small = choose(CONFIG, card(24), flux, "bf16")
    assert small.offload and small.checkpointing == 1 and not small.compile
    none = choose(CONFIG, card(2), flux, "bf16")
    assert "does not fit by the estimate: a smaller --size" in "; ".join(none.why)


def test_flags_are_not_overruled(flux, every_package):
    kept = choose(change(CONFIG, checkpointing=0.0, quantize="none", offload="off"), card(24), flux, "bf16")
    assert (kept.checkpointing, kept.quantize, kept.offload) == (0.0, "none", False)
    assert "does not fit" in "; ".join(kept.why)
    assert choose(change(CONFIG, checkpointing=1.0), card(141), flux, "bf16").checkpointing == 1.0
    assert choose(change(CONFIG, compile="on"), card(141), flux, "bf16").compile


def test_each_trade_saves_and_costs(flux):
    of = card(141)
    plain, half, full = (ExecutionPlan(share) for share in (0.0, 0.5, 1.0))
    bytes_ = [memory.memory(flux, CONFIG, r) for r in (plain, half, full, ExecutionPlan(1.0, quantize="nf4"))]
    assert bytes_ == sorted(bytes_, reverse=True) and bytes_[0] - bytes_[2] > 40 * GB
    times = [memory.seconds(flux, CONFIG, r, of) for r in (plain, half, full, ExecutionPlan(1.0, offload=True))]
    assert times == sorted(times) and times[0] == pytest.approx(4 * 0.34, rel=0.05)  # 4 x market.md's .34 s
    eight = change(CONFIG, optimizer="adamw8bit")
    assert memory.memory(flux, CONFIG, plain) - memory.memory(flux, eight, plain) == pytest.approx(
        1.03 * 6 * flux.adapter
    )


def test_the_base_s_own_pictures_and_predictions_are_counted(flux, every_package):
    """Prior preservation: as many activations as that much more batch, and a forward pass; DCO: that pass alone."""
    of, forward, plain = card(141), flux.linear + flux.attention, ExecutionPlan()
    train = 2 * flux.linear + 3.5 * flux.attention
    once = memory.seconds(flux, CONFIG, plain, of)
    for batch, more in ((1, 1), (4, 2)):
        prior = change(CONFIG, batch=batch, prior_weight=1.0)
        assert memory.memory(flux, prior, plain) == memory.memory(flux, change(CONFIG, batch=batch + more), plain)
        cost = (batch + more) * train + more * forward
        assert memory.seconds(flux, prior, plain, of) == pytest.approx(once * cost / train)
        data = change(prior, prior_target="data")  # without the base's own prediction
        assert memory.seconds(flux, data, plain, of) == pytest.approx(once * (batch + more))
    dco = change(CONFIG, objective="dco")
    assert memory.memory(flux, dco, plain) == memory.memory(flux, CONFIG, plain)
    assert memory.seconds(flux, dco, plain, of) == pytest.approx(once * (1 + forward / train))
    fetched, both = (memory.seconds(flux, c, ExecutionPlan(1.0, offload=True), of) for c in (CONFIG, dco))
    assert both - fetched == pytest.approx(4 * (forward / (0.5 * of.peak) + 4 * flux.block_weights / 20e9))
    assert choose(change(CONFIG, prior_weight=1.0), card(80), flux, "bf16").checkpointing > 0.25


def test_what_is_not_known_is_said(flux):
    assert peak("NVIDIA H100 80GB HBM3") == 989e12 and peak("NVIDIA L40S") == 362e12 and peak("Some GPU") is None
    unknown = choose(CONFIG, card(141, "Some GPU"), flux, "bf16")
    assert "how long a step takes on Some GPU is not known" in unknown.why
    absent = choose(CONFIG, card(141), None, "bf16")
    assert absent == ExecutionPlan(why=("the base is not here yet: only what the flags say",))


def test_a_cpu_trades_nothing_and_asks_nothing(tiny_sd3, picture, monkeypatch):
    monkeypatch.setattr(memory, "size_of", lambda *about: pytest.fail("sizes do not matter here"))
    config = resolve(base=str(tiny_sd3), image=[str(picture)], caption=["a cat in ink style"], device="cpu")
    said = dry_run(config)
    assert said["settings"]["quantize"] == "none" and said["settings"]["compile"] == "off"
    assert said["settings"]["checkpointing"] == 0 and said["running"].startswith("on cpu nothing is traded for memory")
    with pytest.raises(UserError, match="lies in main memory already"):
        dry_run(change(config, offload="on"))


def test_a_base_that_is_not_here_is_planned_by_its_configs(tiny_sdxl, picture, tmp_path, monkeypatch):
    """A hub id by what the hub's cache holds, a single file by its header; the base's levels and prediction count."""
    snapshot = tmp_path / "hub" / "models--owner--xl" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_sdxl, snapshot, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    names = {"input_blocks.0.0.weight": (2, 4), "out.2.weight": (4, 2), "label_emb.0.0.weight": (1,)}
    names |= {"v_pred": (1,), "ztsnr": (1,)}
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "xl.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(memory, "device", lambda name: card(141))
    said = {}
    for base in ("owner/xl", str(tmp_path / "xl.safetensors"), "owner/absent"):
        asked = {"image": [str(picture)], "caption": ["a cat in ink style"], "text_encoder_lora": True, "size": 32}
        config = resolve(base=base, weighting="min-snr", **asked)
        with pytest.warns(UserWarning, match="is not on disk") if "absent" in base else nullcontext():
            said[base] = dry_run(config)
    by_id, by_file, absent = said.values()
    for found in (by_id, by_file):
        assert "GB (NVIDIA H200)" in found["running"] and "a step takes about" in found["running"]
    assert absent["running"] == "the base is not here yet: only what the flags say"
    assert by_id["noise"]["cut"] > 0.5 and by_file["noise"].get("cut", 0) < 0.01  # to zero terminal SNR
    of_v, of_eps = (found["noise_times_weighting"]["log_snr"]["median"] for found in (by_file, by_id))
    assert of_v > -3 and of_eps < -4  # min(SNR, 5) / (SNR + 1) counts noise less, min(SNR, 5) / SNR does not
    with pytest.raises(UserError, match="is damaged, or not a safetensors file"):
        (tmp_path / "none.safetensors").write_bytes(b"hello")
        dry_run(change(config, base=str(tmp_path / "none.safetensors")))


def test_a_base_s_skeleton_has_its_size(tiny_sd3):
    family = loader.load(str(tiny_sd3), device="cpu")
    bones = memory.meta_model(family)
    assert {p.device.type for p in bones.parameters()} == {"meta"} and "denoiser" not in vars(family)
    size = memory.size_of(bones, family, make_config(size=16, rank=4), 4)
    assert size.weights == sum(p.numel() for p in family.denoiser.parameters()) and size.blocks == 2
    from impasto.adapters.lora import add

    adapter = add(family, LoRA(rank=4, alpha=4, targets=("attention",)), 0)
    assert size.adapter == sum(p.numel() for p in adapter.values())


@pytest.fixture(scope="module")
def sdxl_clips():
    """SDXL's two text encoders at real size, on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with torch.device("meta"):
        return [
            CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)),
            CLIPTextModelWithProjection(CLIPTextConfig(**large, projection_dim=1280)),
        ]


def test_text_encoders_that_are_trained_are_counted(flux, sdxl_clips):
    """CLIP ViT-L has 123,060,480 weights, bigG's text half 694,659,840 (their published checkpoints)."""
    size = memory.with_clips(flux, sdxl_clips, CONFIG.adapter.rank)
    assert size.clip_weights == 123_060_480 + 694_659_840
    assert size.adapter - flux.adapter == 32 * 4 * 2 * (12 * 768 + 32 * 1280)
    activations = 34 * 77 * (12 * 768 + 32 * 1280)
    assert size.clip_activations == activations
    for share, batch in ((0.0, 1), (1.0, 3)):  # computing blocks again saves nothing there
        config = change(CONFIG, batch=batch)
        more = memory.memory(size, config, ExecutionPlan(share)) - memory.memory(flux, config, ExecutionPlan(share))
        assert more == pytest.approx(
            1.03 * (2 * size.clip_weights + 20 * (size.adapter - flux.adapter) + batch * activations)
        )
    of = card(141)
    assert (
        1 < memory.seconds(size, CONFIG, ExecutionPlan(), of) / memory.seconds(flux, CONFIG, ExecutionPlan(), of) < 1.01
    )


def test_a_plan_counts_them_when_they_are_trained(tiny_sdxl, monkeypatch):
    """What the planner reads from the folder is what is trained."""
    from impasto.adapters.text_encoder import build_text

    family = loader.load(str(tiny_sdxl), device="cpu")
    sizes = {}
    monkeypatch.setattr(memory, "device", lambda name: card(141))
    monkeypatch.setattr(memory, "choose", lambda config, of, size, *more: sizes.update({config.adapter.rank: size}))
    for rank, trained in ((4, True), (8, False)):
        config = resolve(base=str(tiny_sdxl), rank=rank, text_encoder_lora=trained)
        memory.choose_execution(config, family, "cuda", "bf16")
    assert sizes[8].clip_weights == 0 and "clip" not in vars(family)
    models = [family.clip.text_encoder, family.clip.text_encoder_2]
    assert sizes[4].clip_weights == sum(p.numel() for model in models for p in model.parameters())
    added = build_text(resolve(base=str(tiny_sdxl), rank=4, text_encoder_lora=True)).attach(family)
    plain = memory.size_of(memory.meta_model(family), family, make_config(rank=4, size=16), 4).adapter
    assert sizes[4].adapter - plain == sum(p.numel() for p in added.values())


def test_advice_names_what_is_left_to_try():
    config = make_config(batch=4, size=1024)
    assert memory.oom_hint_train(config, ExecutionPlan()) == (
        "the same command with --checkpointing 1 goes on; with another --out try --batch 1 (it is 4; --accumulate "
        "makes up for it), or --optimizer adamw8bit, or --quantize nf4"
    )
    last = change(config, batch=1, optimizer="adamw8bit")
    assert memory.oom_hint_train(last, ExecutionPlan(1.0, quantize="nf4")) == "with another --out try --size 512"
    assert memory.oom_hint_train(change(last, size=256), ExecutionPlan(1.0), "cuda").startswith(
        "the same command with --offload on"
    )
    assert "--offload" not in memory.oom_hint_train(last, ExecutionPlan(1.0), "cpu") + memory.oom_hint_train(
        last, ExecutionPlan(1.0, offload=True), "cuda"
    )
    small = change(last, size=256)
    assert (
        memory.oom_hint_train(small, ExecutionPlan(1.0, offload=True), "cuda")
        == "this device is too small for this base"
    )


def test_a_sharded_base_is_neither_quantised_nor_offloaded_and_takes_its_share(flux, every_package):
    alone, shared = (choose(CONFIG, card(48), flux, "bf16", shards) for shards in (1, 4))
    assert shared.checkpointing < alone.checkpointing and "sharded over 4 processes: about" in shared.why[0]
    weights = memory.memory(flux, CONFIG, ExecutionPlan()) - memory.memory(flux, CONFIG, ExecutionPlan(), shards=4)
    assert weights == pytest.approx(1.03 * 2 * flux.block_weights * (1 - 1 / 4 - 2 / flux.blocks))
    small = choose(CONFIG, card(8), flux, "bf16", 4)
    assert (small.quantize, small.offload) == ("none", False) and "does not fit by the estimate" in "; ".join(small.why)
    for flags in ({"offload": "on"}, {"quantize": "nf4"}):
        with pytest.raises(UserError, match="does not work with a base sharded over processes"):
            choose(change(CONFIG, **flags), card(48), flux, "bf16", 4)


def test_an_offloaded_base_keeps_what_is_no_block_s_linear_layer(flux):
    kept = memory.memory(flux, CONFIG, ExecutionPlan(1.0, offload=True))
    other = 2 * (flux.weights - flux.block_weights)
    assert kept > 1.03 * (other + 4 * flux.block_weights / flux.blocks)
    assert kept < memory.memory(flux, CONFIG, ExecutionPlan(1.0)) - 0.9 * 2 * flux.block_weights


def test_how_a_pipeline_draws():
    """FLUX: a transformer of 23.8 GB, T5 of 9.5, CLIP and the autoencoder; 1024 px, and what is free of a device."""
    parts, pixels = [int(23.8e9), int(9.5e9), int(0.25e9), int(0.17e9)], 1024**2
    ways = {g: devices.inference_placement(parts, pixels, g * GB) for g in (80, 48, 40, 31, 24)}
    assert ways == {80: "whole", 48: "whole", 40: "by part", 31: "by part", 24: "by layer"}
    assert devices.inference_placement(parts, 4 * pixels, 48 * GB) == "by part"
