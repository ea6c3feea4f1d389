"""The method as the paper writes it, and `train` with its recipe: the same adapter."""

import torch
from safetensors.torch import load_file

from impasto.bases.loader import load
from impasto.config import resolve
from impasto.data.buckets import views
from impasto.data.items import Item
from impasto.data.pictures import Picture
from impasto.data.prepare import prepare_items
from impasto.data.references import read
from impasto.methods.style_friendly import style_friendly
from impasto.training.train import train

CAPTION = "a rocket in pixel art style"


def test_train_does_what_the_paper_says(tmp_path, picture):
    from tiny import sd3_folder

    base = sd3_folder(tmp_path / "base", card={"text_lengths": {"1": 1.0}})
    settings = {"steps": 8, "batch": 2, "accumulate": 2, "lr": 1e-3, "rank": 4, "seed": 3}
    config = resolve(
        "style-friendly",
        str(base),
        image=[str(picture)],
        caption=[CAPTION],
        out=str(tmp_path / "run"),
        preview=False,
        tensorboard=False,
        **settings,
    )
    train(config)
    trained = load_file(config.out / "pytorch_lora_weights.safetensors")
    family = load(str(base), device="cpu")
    reference = read(picture)
    known = Picture(reference.path, reference.sha256, *reference.image.size)
    middle = views(known.width, known.height, (16, 16), 1, False, known.sha256)
    prepared = prepare_items(family, [Item(known, CAPTION, (16, 16), middle)])
    theta = style_friendly(family, prepared, rank=4, lr=1e-3, steps=8, draws=4, seed=3)
    assert len(theta) == len(trained)
    for name, p in theta.items():
        saved = trained[f"transformer.{name.replace('.default', '')}"]
        assert torch.allclose(p, saved, atol=2e-5), name
    moved = sum(p.abs().sum().item() for name, p in theta.items() if "lora_B" in name)
    assert moved > 1
