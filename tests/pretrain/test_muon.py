"""Muon with one Newton-Schulz iteration per shape: the same step as torch's."""

import torch

from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.muon import StackedMuon


def test_stacked_muon_step_equals_torch_muon():
    """Within 2 % of the step's length: bfloat16, in another order of sums."""
    models = [MMDiT().new((6, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    blocks = [m.transformer_blocks[0] for m in models]
    settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    kinds = (torch.optim.Muon, StackedMuon)
    matrices = [[p for p in block.parameters() if p.ndim == 2] for block in blocks]
    plain, stacked = (kind(mine, **settings) for kind, mine in zip(kinds, matrices, strict=True))
    begin = [p.detach().clone() for p in matrices[0]]
    for step in range(2):
        g = torch.Generator().manual_seed(step)
        for p, q in zip(*matrices, strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        plain.step()
        stacked.step()
    assert len(begin) == 14
    for start, p, q in zip(begin, *matrices, strict=True):
        assert torch.dist(p.detach(), q.detach()) < 0.02 * torch.dist(p.detach(), start) > 0
    stacked.load_state_dict(plain.state_dict())  # one state fits both
