"""Reference values of CSD, LPIPS and ImageReward by their own packages, on random weights.

They go to tests/reference/encoders.json.

Its environment is its own, since these packages need old releases; impasto is not imported:

    python3.11 -m venv /tmp/reference && cd /tmp/reference
    bin/pip install torch==2.13.0 "numpy<2.3" pillow setuptools wheel transformers==4.40.2 scipy tqdm ftfy regex
    bin/pip install --no-deps torchvision timm==0.6.13 lpips==0.1.4 image-reward==1.5 openai-clip==1.0.1
    bin/pip install --no-deps --no-build-isolation fairscale==0.4.13
    bin/python REPOSITORY/tools/write_encoder_references.py

Weights and images are those of tests/reference/random_weights.py, at sizes that a test can afford (CSD and ImageReward:
two layers; LPIPS: AlexNet and VGG-16 whole). CSD has no package: its formula (the class token of OpenAI's CLIP without
the projection, times last_layer_style, length 1) is applied to the package clip.
"""

import json
import sys
import tempfile
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/reference"))
from random_weights import random_images, random_state  # noqa: E402

PACKAGES = ("torch", "torchvision", "transformers", "timm", "lpips", "image-reward", "openai-clip", "pillow", "numpy")
PROMPTS = ["a rocket in pixel art style", "a cat", "a star and a face", "rabbit drawing"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "rocket",
    "in",
    "pixel",
    "art",
    "style",
    "cat",
    "star",
    "and",
    "face",
    "rabbit",
    "drawing",
]
WIDTH, PATCH, SIDE = 128, 8, 32


def prepare_torchvision() -> None:
    """Declare the operators that torchvision's Python part expects of its compiled part, which is not used here."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    prepare_torchvision.library = library  # kept alive


def package(name: str, distribution: str) -> None:
    """Make a package known by its folder alone: its __init__ imports what is not needed here."""
    found = ModuleType(name)
    found.__path__ = [str(metadata.distribution(distribution).locate_file(name))]
    sys.modules[name] = found


def fill(module: torch.nn.Module, prefix: str = "", drop: tuple[str, ...] = ()) -> dict[str, list[int]]:
    """Put random weights into a module; {name: shape}."""
    names = [name for name in module.state_dict() if not name.endswith(drop or ("\0",))]
    shapes = {prefix + name: list(module.state_dict()[name].shape) for name in names}
    state = {name.removeprefix(prefix): torch.from_numpy(value) for name, value in random_state(shapes).items()}
    module.load_state_dict(state, strict=not drop)
    module.eval()
    return shapes


@torch.no_grad()
def csd(images: list) -> dict:
    package("clip", "openai-clip")
    from clip.model import VisionTransformer
    from torchvision import transforms

    class Csd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = VisionTransformer(SIDE, PATCH, WIDTH, 2, WIDTH // 64, 24)
            self.backbone.proj = None
            self.last_layer_style = torch.nn.Parameter(torch.zeros(WIDTH, 24))
            self.last_layer_content = torch.nn.Parameter(torch.zeros(WIDTH, 24))

    model = Csd()
    shapes = fill(model)
    pixels = transforms.Compose(
        [
            transforms.Resize(SIDE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    features = model.backbone(torch.stack([pixels(image) for image in images])) @ model.last_layer_style
    return {"shapes": shapes, "embeddings": torch.nn.functional.normalize(features, dim=1).tolist()}


@torch.no_grad()
def lpips_distances(images: list, net: str) -> dict:
    import lpips
    import numpy as np

    model = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    slices = [name for name in model.state_dict() if name.startswith("net.")]
    published = {name: "features." + name.split(".", 2)[2] for name in slices}
    published |= {f"lin{k}.model.1.weight": f"lin{k}.model.1.weight" for k in range(model.L)}
    shapes = {new: list(model.state_dict()[old].shape) for old, new in published.items()}
    state = random_state(shapes)
    model.load_state_dict({old: torch.from_numpy(state[new]) for old, new in published.items()}, strict=False)
    side = 64 if net == "alex" else 32
    resized = [image.resize((side, side), 3) for image in images]
    x = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in resized]
    pairs = [(0, 1), (1, 2), (3, 3)]
    return {"shapes": shapes, "side": side, "pairs": pairs, "distances": [model(x[a], x[b]).item() for a, b in pairs]}


@torch.no_grad()
def image_reward(images: list) -> dict:
    package("ImageReward", "image-reward")
    models = import_module("ImageReward.ImageReward")
    med = import_module("ImageReward.models.BLIP.med")
    vit = import_module("ImageReward.models.BLIP.vit")
    from transformers import BertTokenizer

    model = models.ImageReward.__new__(models.ImageReward)
    torch.nn.Module.__init__(model)
    model.device, model.mean, model.std = "cpu", 0.16717362830052426, 1.0333394966054072
    config = med.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=WIDTH // 64,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    config.encoder_width, config.add_cross_attention = 192, True
    model.blip = torch.nn.Module()
    model.blip.visual_encoder = vit.VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=192, depth=2, num_heads=192 // 64, num_classes=0
    )
    model.blip.text_encoder = med.BertModel(config=config, add_pooling_layer=False)
    model.mlp = models.MLP(WIDTH)
    shapes = fill(model, drop=("position_ids",))
    model.preprocess = models._transform(SIDE)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.txt")
        vocabulary.write_text("\n".join(WORDS) + "\n")
        model.blip.tokenizer = BertTokenizer(str(vocabulary))
    rewards = [model.score(prompt, image) for prompt, image in zip(PROMPTS, images, strict=True)]
    return {"shapes": shapes, "vocabulary": WORDS, "prompts": PROMPTS, "rewards": rewards}


def main() -> None:
    prepare_torchvision()
    images = random_images()
    found = {
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "csd": csd(images),
        "lpips-alex": lpips_distances(images, "alex"),
        "lpips-vgg": lpips_distances(images, "vgg"),
        "image-reward": image_reward(images),
    }
    out = ROOT / "tests/reference/encoders.json"
    out.write_text(json.dumps(found, indent=None) + "\n")
    print(out, {name: {k: v for k, v in part.items() if k in ("rewards", "distances")} for name, part in found.items()})


if __name__ == "__main__":
    main()
