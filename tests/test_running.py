"""How the denoiser is run: the same loss and gradients, whatever memory or time it takes; and who refuses what."""

import itertools
import warnings

import pytest
import torch

from impasto import families, running
from impasto.adapters import lora
from impasto.config import TrainConfig, check_ranges
from impasto.errors import UserError
from impasto.objectives import Batch
from impasto.objectives.denoise import denoise
from impasto.running import Running, Share

TARGETS = ("to_q", "to_out.0")


def family(folder, how=None, targets=TARGETS):
    """The tiny base with a LoRA whose B is not zero, run as `how` says."""
    how, own = how or Running(), families.load(str(folder), device="cpu", precision="fp32")
    running.place(how, own)
    adapter = lora.add(own, rank=2, alpha=2, targets=targets, seed=0)
    running.start(how, own, adapter)
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
    other = step(*family(tiny_sd3, Running(checkpointing=share)))
    agree(plain, other)
    assert other[2] < (0.8 if share == 0.5 else 0.5) * plain[2]


@pytest.mark.parametrize(("share", "n", "chosen"), [(0, 8, 0), (0.25, 8, 2), (0.5, 7, 3), (0.75, 8, 6), (1, 57, 57)])
def test_a_share_is_spread_evenly(share, n, chosen):
    blocks = [Share(share).chosen(i) for i in range(n)]
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
    fresh = families.load(str(tiny_sd3), device="cpu", precision="fp32")
    running.offload(fresh.denoiser, "cpu")
    adapter = lora.add(fresh, rank=2, alpha=2, targets=TARGETS, seed=0)
    running.start(Running(checkpointing=1.0), fresh, adapter)
    with torch.no_grad():
        for p, q in zip(adapter.values(), (p for p in own.denoiser.parameters() if p.requires_grad), strict=True):
            p.copy_(q)
    agree(plain, step(fresh, adapter))


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
        own, adapter = family(tiny_sd3, Running(quantize=kind))
        loss, grads, _ = step(own, adapter)
    layer = own.denoiser.transformer_blocks[0].attn.to_q.base_layer
    assert type(layer.weight).__name__ in ("Int8Tensor", "Float8Tensor", "Params4bit")
    assert type(own.denoiser.proj_out.weight) is torch.nn.Parameter
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    assert 0 < abs(loss - plain[0]) < error * plain[0]
    one = torch.cat([g.flatten() for g in plain[1].values()])
    two = torch.cat([g.flatten() for g in grads.values()])
    assert 1 - error < torch.cosine_similarity(one, two, dim=0) < 1


def test_refusals(tiny_sd3, monkeypatch):
    def refuse(device, message, **keys):
        with pytest.raises(UserError, match=message):
            running.check(check_ranges(TrainConfig(**keys)), device)

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
    own = families.load(str(tiny_sd3), device="cpu")
    with pytest.raises(UserError, match="torch's own, which picks the fastest kernel"):
        running.attention(own.denoiser, "native")
    with pytest.raises(UserError, match="has no gradient checkpointing"):
        running.checkpoint(torch.nn.Linear(1, 1), 1.0)


def test_an_attention_backend_is_set_where_there_is_one():
    """As FLUX has it: processors with a backend of their own."""
    from diffusers import FluxTransformer2DModel

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    model = FluxTransformer2DModel(
        **sizes, in_channels=4, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4)
    )
    running.attention(model, "native")
    assert model.transformer_blocks[0].attn.processor._attention_backend.value == "native"
    with pytest.raises(UserError, match=r"--attention zigzag cannot be had: .*must be one of"):
        running.attention(model, "zigzag")
    model.reset_attention_backend()


def test_a_base_is_read_where_it_is_asked_for():
    class Lazy:
        device = "cuda"

        @property
        def denoiser(self):
            return f"read onto {self.device}"

    own = Lazy()
    assert running.load_on(own, "cpu") == "read onto cpu" and own.device == "cuda"  # type: ignore[arg-type]
