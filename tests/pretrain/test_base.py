"""Batches, optimisers and settings of pretraining."""

import pytest
import torch

from impasto.errors import UserError
from impasto.files import MODELS
from impasto.pretrain import base, run
from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.unet import UNet


def _bank() -> base.Bank:
    class Pool:
        def draw(self, n, shares, rng):
            return rng.integers(10, size=n)

    g = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 90, (10, base.CAPTIONS, 32), generator=g, dtype=torch.int16)
    return base.Bank(torch.randn(10, 16, 16, 16, generator=g).half(), ids, torch.ones(32, dtype=torch.int16), Pool())  # type: ignore[arg-type]


def test_draw_is_function_of_seed_and_step():
    bank = _bank()
    a, b, c = base.draw(bank, 8, 0, 5, {}), base.draw(bank, 8, 0, 5, {}), base.draw(bank, 8, 0, 6, {})
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[3], c[3])
    z = torch.cat([base.draw(bank, 64, 0, s, {})[2] for s in range(60)])
    assert float(z.mean()) == pytest.approx(0, abs=0.06) and float(z.std()) == pytest.approx(1, abs=0.06)
    empty = torch.cat([(base.draw(bank, 64, 0, s, {})[1] == bank.empty).all(1) for s in range(60)])
    assert float(empty.float().mean()) == pytest.approx(base.DROPPED, abs=0.02)
    assert bool((bank.ids != 1).any(-1).all())  # dropping a caption does not modify the bank


def test_draw_with_offset_shifts_channels_only():
    bank = _bank()
    plain, shifted = base.draw(bank, 64, 0, 5, {}), base.draw(bank, 64, 0, 5, {}, offset=0.5)
    assert all(torch.equal(x, y) for x, y in zip(plain[:3], shifted[:3], strict=True))
    by = shifted[3] - plain[3]
    assert torch.allclose(by, by.mean((2, 3), keepdim=True).expand_as(by), atol=1e-5)
    assert float(by.mean((2, 3)).std()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(("net", "shape"), [(MMDiT(), (2, 1)), (UNet(), (32, 32, 32))])
def test_optimizers_hold_each_parameter_once(net, shape):
    model = net.new(shape)
    muon, adamw = base.optimizers(net, model, 1e-3)
    owned = [id(p) for o in (muon, adamw) for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    assert owned and all(p.ndim == 2 for group in muon.param_groups for p in group["params"])


def test_set_progress_warms_up_holds_and_decays():
    model = torch.nn.Linear(2, 2)
    opts = [torch.optim.SGD(model.parameters(), lr=1.0), torch.optim.SGD(model.parameters(), lr=1.0)]
    assert base.set_progress(opts, 1.0, 0, 0.0) == pytest.approx(0.01)
    assert base.set_progress(opts, 1.0, 500, 0.5) == 1.0
    assert opts[1].param_groups[0]["lr"] == 0.5
    assert base.set_progress(opts, 1.0, 500, 1.0) < 2e-3


def test_shape_of_by_name_and_numbers():
    assert base.shape_of(MMDiT(), "small") == (6, 3) and base.shape_of(MMDiT(), "7x4") == (7, 4)
    assert base.shape_of(UNet(), "96x192x192") == UNet().sizes["small"]
    for size in ("large", "7", "7x4x2", "ax4"):
        with pytest.raises(UserError, match="unknown size"):
            base.shape_of(MMDiT(), size)


def test_session_with_other_size_than_packaged_raises(tmp_path):
    shape = run.packaged_shape("mini-sd3")
    assert shape is not None and (MODELS / "mini-sd3" / "transformer").is_dir()
    other = f"{shape[0] + 1}x1"
    with pytest.raises(UserError, match=f"{shape[0]}x{shape[1]}, not {other}"):
        run.Session("mini-sd3", tmp_path, "cpu", other, 1e-3, 0)
    assert run.Session("mini-sd3", tmp_path, "cpu", None, 1e-3, 0).seen["pictures"] > 0


def test_shares_of_keeps_proportions():
    assert base.shares_of(None) == base.SHARES
    given = base.shares_of(0.85)
    assert given["plain"] == 0.85 and sum(given.values()) == pytest.approx(1)
    assert given["procedural"] / given["scene"] == pytest.approx(base.SHARES["procedural"] / base.SHARES["scene"])
    with pytest.raises(UserError, match="between 0 and 1"):
        base.shares_of(1.2)
