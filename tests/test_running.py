"""How the denoiser is run: the same loss and gradients, whatever memory or time it takes; and who refuses what."""

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from impasto.adapters import lora
from impasto.adapters.config import LoRA
from impasto.bases import loader
from impasto.config import make_config, resolve
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.execution.apply import ExecutionPlan
from impasto.objectives.denoise import denoise
from impasto.sampling.sample import Sampling, encoder, sample
from impasto.styles.weights import WEIGHTS
from impasto.training.train import train

TARGETS = ("to_q", "to_out.0")


def family(folder, how=None, targets=TARGETS):
    """The tiny base with a LoRA whose B is not zero, run as `how` says."""
    how, own = how or ExecutionPlan(), loader.load(str(folder), device="cpu", precision="fp32")
    running.load_denoiser(how, own)
    adapter = lora.add(own, LoRA(rank=2, alpha=2, targets=targets), 0)
    running.apply_execution(how, own, adapter)
    with torch.no_grad():
        for i, p in enumerate(adapter.values()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)
    return own, adapter


def step(own, adapter):
    """(loss, gradients) of one batch, and the bytes that autograd kept."""
    draw = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, 2, 4, 4, 4, generator=draw)
    cond = {"text": torch.randn(2, 9, 48, generator=draw), "pooled": torch.randn(2, 24, generator=draw)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        loss = denoise(own, Batch(x, eps, cond), torch.tensor([-6.0, 0.0]), [])["loss"]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in adapter.items()}, sum(kept)


@pytest.fixture(scope="module")
def plain(tiny_sd3):
    return step(*family(tiny_sd3))


def agree(one, two, tolerance=1e-5):
    assert one[0] == pytest.approx(two[0], rel=tolerance)
    for name, grad in one[1].items():
        assert grad.norm() > 0 or "transformer_blocks.1" in name
        assert (grad - two[1][name]).norm() <= tolerance * grad.norm() + 1e-9, name


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_checkpointing_changes_nothing_but_memory(tiny_sd3, plain, share):
    other = step(*family(tiny_sd3, ExecutionPlan(checkpointing=share)))
    agree(plain, other)
    assert other[2] < (0.8 if share == 0.5 else 0.5) * plain[2]


@pytest.mark.parametrize(("share", "n", "chosen"), [(0, 8, 0), (0.25, 8, 2), (0.5, 7, 3), (0.75, 8, 6), (1, 57, 57)])
def test_a_share_is_spread_evenly(share, n, chosen):
    blocks = [running.PartialCheckpointing(share).chosen(i) for i in range(n)]
    assert sum(blocks) == chosen
    if 0 < share <= 0.5:
        assert not any(a and b for a, b in itertools.pairwise(blocks))


def test_compiled_blocks_agree(tiny_sd3, plain):
    """Traced, without the C++ code generator, which would take a minute."""
    own, adapter = family(tiny_sd3)
    running.compile_blocks(own.denoiser, backend="aot_eager")
    agree(plain, step(own, adapter), 1e-4)
    compiled = [m for m in own.denoiser.modules() if m._compiled_call_impl is not None]
    assert [type(m).__name__ for m in compiled] == ["JointTransformerBlock"] * 2


def test_group_offload_agrees(tiny_sd3, plain):
    """From main memory to main memory, here: every layer still goes through diffusers' hooks."""
    own, _ = family(tiny_sd3)
    fresh = loader.load(str(tiny_sd3), device="cpu", precision="fp32")
    running.offload(fresh.denoiser, "cpu")
    adapter = lora.add(fresh, LoRA(rank=2, alpha=2, targets=TARGETS), 0)
    running.apply_execution(ExecutionPlan(checkpointing=1.0), fresh, adapter)
    with torch.no_grad():
        for p, q in zip(adapter.values(), (p for p in own.denoiser.parameters() if p.requires_grad), strict=True):
            p.copy_(q)
    agree(plain, step(fresh, adapter))


def gradients(folder, offloaded):
    """(gradients of a LoRA on every attention, all blocks computed again) of one batch of a tiny base."""
    own = loader.load(str(folder), device="cpu", precision="fp32")
    running.load_denoiser(ExecutionPlan(offload=offloaded), own)
    adapter = lora.add(own, LoRA(rank=2, alpha=2, targets=("attention",)), 0)
    running.apply_execution(ExecutionPlan(checkpointing=1.0, offload=offloaded), own, adapter)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter.values():
            p.copy_(torch.randn(p.shape, generator=draw) / 8)
    own.denoiser.train()
    x, cond = torch.randn(2, 4, 4, 4, generator=draw), own.encode_prompt(["a cat", "a dog"])
    if getattr(own, "wants_size_ids", False):
        cond["size_ids"] = torch.tensor([[16.0, 16, 0, 0, 16, 16]] * 2)
    own.predict(x, torch.tensor([-3.0, -2.0]), cond).square().mean().backward()
    return {name: p.grad for name, p in adapter.items()}, own


def test_a_backward_pass_misses_nothing_of_what_is_offloaded(tiny_base, monkeypatch):
    """What goes back to main memory is overwritten here, as another device would make it unusable."""
    from diffusers.hooks.group_offloading import ModuleGroup

    plain, _ = gradients(tiny_base, offloaded=False)
    kept, left = {}, []

    def tensors(group):
        return [t for module in group.modules for t in module.parameters()]

    def leave(group):
        for t in tensors(group):
            kept.setdefault(id(t), t.data.clone())
            t.data = torch.full_like(t.data, torch.nan)
            left.append(t)

    def fetch(group):
        for t in tensors(group):
            t.data = kept[id(t)].clone()

    monkeypatch.setattr(ModuleGroup, "offload_", leave)
    monkeypatch.setattr(ModuleGroup, "onload_", fetch)
    found, own = gradients(tiny_base, offloaded=True)
    assert len({id(t) for t in left}) > 10 and all(t.isnan().all() for t in left)
    norms = [layer for layer in own.denoiser.modules() if "Norm" in type(layer).__name__]
    assert norms and not any(p.isnan().any() for norm in norms for p in norm.parameters(recurse=False))
    for name, grad in plain.items():
        assert torch.allclose(found[name], grad, rtol=1e-5, atol=1e-7), name


def test_nothing_is_kept_before_the_first_adapter(tiny_sd3):
    """A frozen prefix costs no activations: an adapter on the last block keeps half of what one on the first does."""
    kept = {i: step(*family(tiny_sd3, targets=(f"transformer_blocks.{i}.attn.to_q",)))[2] for i in (0, 1)}
    assert kept[1] < 0.6 * kept[0]
    own, _ = family(tiny_sd3, targets=("transformer_blocks.1.attn.to_q",))
    seen = []
    own.denoiser.transformer_blocks[0].register_forward_hook(lambda m, i, o: seen.append([t.requires_grad for t in o]))
    own.denoiser.transformer_blocks[1].register_forward_hook(lambda m, i, o: seen.append([o[1].requires_grad]))
    step(own, {})
    assert seen == [[False, False], [True]]


@pytest.mark.parametrize(
    ("kind", "package", "error"),
    [
        ("int8", "torchao", 0.02),
        ("fp8", "torchao", 0.1),
        ("nf4", "bitsandbytes", 0.3),
    ],
)
def test_a_quantised_base_trains(tiny_sd3, plain, kind, package, error):
    """The gradient is near the true one, and not it: the base is another, if only by little."""
    pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own, adapter = family(tiny_sd3, ExecutionPlan(quantize=kind))
        loss, grads, _ = step(own, adapter)
    layer = own.denoiser.transformer_blocks[0].attn.to_q.base_layer
    assert type(layer.weight).__name__ in ("Int8Tensor", "Float8Tensor", "Params4bit")
    assert type(own.denoiser.proj_out.weight) is torch.nn.Parameter
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    assert 0 < abs(loss - plain[0]) < error * plain[0]
    one = torch.cat([g.flatten() for g in plain[1].values()])
    two = torch.cat([g.flatten() for g in grads.values()])
    assert 1 - error < torch.cosine_similarity(one, two, dim=0) < 1


def test_no_weights_are_made_up_to_be_quantised(monkeypatch):
    pytest.importorskip("bitsandbytes")
    model = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False))])
    layers, made = [*model[0]], []
    before = [layer.weight.detach().clone() for layer in layers]
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: made.append(layer.weight.device.type))
    running.quantize(model, "nf4", torch.float32)
    assert made == ["meta", "meta"] and [layer.bias is None for layer in model[0]] == [False, True]
    model.to("cpu")
    for old, new in zip(before, model[0], strict=True):
        x = torch.eye(64)
        told = new(x) - (0 if new.bias is None else new.bias)
        assert 0 < (told.T - old).abs().max() < 0.2 * old.abs().max()


@pytest.mark.parametrize(
    ("kind", "package", "error"),
    [
        ("int8", "torchao", 0.02),
        ("fp8", "torchao", 0.1),
        ("nf4", "bitsandbytes", 0.3),
    ],
)
def test_a_quantised_base_trains_under_autocast(tiny_sd3, picture, tmp_path, kind, package, error):
    """A run in bf16, as on a GPU: the loss is near that of the whole base, the adapter moves and stays float32."""
    pytest.importorskip(package)
    about = {"image": [str(picture)], "caption": ["a rocket in ink style"], "steps": 1, "lr": 0.01, "rank": 2}
    still = {"preview": False, "tensorboard": False, "device": "cpu", "precision": "bf16"}
    losses = {}
    for quantize in ("none", kind):
        out = tmp_path / quantize
        losses[quantize] = train(
            resolve("style-friendly", str(tiny_sd3), out=str(out), quantize=quantize, **about, **still)
        )["loss"]
        moved = {name: t for name, t in load_file(out / WEIGHTS).items() if "lora_B" in name}
        assert {t.dtype for t in moved.values()} == {torch.float32}
        assert all(t.any() or ("transformer_blocks.1" in name and "add_" in name) for name, t in moved.items())
    assert 0 < abs(losses[kind] - losses["none"]) < error * losses["none"]


def test_refusals(tiny_sd3, monkeypatch):
    def refuse(device, message, **keys):
        with pytest.raises(UserError, match=message):
            running.check(make_config(**keys).execution, device)

    refuse("cpu", "lies in main memory already", offload="on")
    refuse("cuda", "saves nothing unless", offload="on", checkpointing=0.5)
    refuse("cuda", "no backward pass", attention="sage")
    refuse("mps", "does not train on mps", compile="on")
    refuse("cpu", "share, 0 to 1, not 2", checkpointing=2.0)
    monkeypatch.setattr(running.shutil, "which", lambda name: None)
    refuse("cpu", "there is no C\\+\\+ compiler", compile="on")
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    refuse("cuda", "triton is not installed", compile="on")
    monkeypatch.setattr(running, "extra", lambda *names: None)
    refuse("mps", "bitsandbytes has no kernels for it", quantize="nf4")
    refuse("cuda", "exclude each other", offload="on", quantize="nf4")
    own = loader.load(str(tiny_sd3), device="cpu")
    with pytest.raises(UserError, match="torch's own, which picks the fastest kernel"):
        running.attention(own.denoiser, "native")
    with pytest.raises(UserError, match="has no gradient checkpointing"):
        running.checkpoint(torch.nn.Linear(1, 1), 1.0)


def test_an_attention_backend_is_set_where_there_is_one():
    """As FLUX has it: processors with a backend of their own."""
    from diffusers import FluxTransformer2DModel
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    model = FluxTransformer2DModel(
        **sizes, in_channels=4, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4)
    )
    before = _AttentionBackendRegistry.get_active_backend()
    running.check_attention(model, "_native_math"), running.check_attention(model, "auto")  # only tried
    assert model.transformer_blocks[0].attn.processor._attention_backend is None
    assert _AttentionBackendRegistry.get_active_backend() == before
    with pytest.raises(UserError, match=r"--attention zigzag cannot be had: .*must be one of"):
        running.check_attention(model, "zigzag")
    running.attention(model, "native")
    assert model.transformer_blocks[0].attn.processor._attention_backend.value == "native"
    with pytest.raises(UserError, match=r"--attention zigzag cannot be had: .*must be one of"):
        running.attention(model, "zigzag")
    model.reset_attention_backend()


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_flux", "tiny_sdxl"])
def test_a_pipeline_draws_the_same_by_layer(base, request):
    folder = str(request.getfixturevalue(base))
    own, pictures = loader.load(folder, device="cpu", precision="fp32"), []
    for how in ("whole", "by layer"):
        pipe = own.pipeline()
        running.apply_placement(pipe, "cpu", how)
        jobs, sampling = [("a cat", 3), ("a dog", 4)], Sampling(steps=2, batch=1).on(own)
        pictures.append([image.tobytes() for image, _ in sample(own, pipe, jobs, encoder(own, pipe), sampling, {})])
    assert pictures[0] == pictures[1]


def test_where_a_pipeline_goes(monkeypatch):
    """On a GPU as memory says, told where that is slow; elsewhere it lies there already."""
    went = []
    pipe = SimpleNamespace(components={"a": torch.nn.Linear(1000, 1000), "tokenizer": object()})
    pipe.to = lambda device: went.append(("to", device))
    pipe.enable_model_cpu_offload = lambda device: went.append(("parts", device))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    running.place_pipeline(pipe, SimpleNamespace(device="cpu"), 1)
    for room, told in ((24e9, False), (1.637e9, True)):
        free = room
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pipe.components |= {"b": torch.nn.Linear(1000, 1000)}
            running.place_pipeline(pipe, SimpleNamespace(device="cuda"), 1)
        assert bool(said) == told and (not told or "it goes through the device part by part" in str(said[0].message))
    assert went == [("to", "cuda"), ("parts", "cuda")]


def test_a_base_is_read_where_it_is_asked_for():
    class Lazy:
        device = "cuda"

        @property
        def denoiser(self):
            return f"read onto {self.device}"

    own = Lazy()
    assert running.load_on(own, "cpu") == "read onto cpu" and own.device == "cuda"  # type: ignore[arg-type]
