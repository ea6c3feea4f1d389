"""The embedded base models, assembled from the package into diffusers folders in the cache.

The package holds the shared components (`models/autoencoder`, `models/clip`) and per base a denoiser, a scheduler and
a card. `ensure(name)` writes a folder that the pipeline's `from_pretrained` loads without further arguments. SD3 needs
three text encoders: the second CLIP tower and T5 are tiny models whose outputs are zero, and T5's tokeniser encodes
every text as empty. Weights are stored in fp16; `"dtype": "float32"` in the text encoders' configs makes pipelines load
all of them in one dtype.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from impasto.errors import UserError, nearest
from impasto.families.base import quiet
from impasto.files import MODELS, atomic_folder, cache_dir

DENOISER = {"mini-sd3": "transformer", "mini-sd15": "unet", "mini-muse": "transformer"}
"""Name: the folder of its denoiser's weights."""
NAMES = tuple(DENOISER)
SIZES = "sizes.json"  # lists the file sizes of an assembled folder
ZERO_WIDTH = 8  # width of the second CLIP tower


def names() -> tuple[str, ...]:
    """The embedded bases whose weights are in the package."""
    return tuple(name for name, part in DENOISER.items() if (MODELS / name / part).is_dir())


def autoencoder(name: str) -> Path:
    """The package's folder of the autoencoder of an embedded base."""
    return MODELS / ("image-tokenizer" if name == "mini-muse" else "autoencoder")


def card(name: str) -> dict:
    """The `card.json` of an embedded base: scores, concepts, training images, device, time, hash."""
    return json.loads((MODELS / name / "card.json").read_text(encoding="utf-8"))


def weights_hash(name: str) -> str:
    """sha256 over denoiser, scheduler, autoencoder, text tower and tokeniser."""
    digest = hashlib.sha256()
    for folder in (MODELS / name / DENOISER[name], MODELS / name / "scheduler", autoencoder(name)):
        for path in sorted(p for p in folder.iterdir() if p.name != "card.json"):
            digest.update(path.name.encode() + path.read_bytes())
    digest.update((MODELS / "clip" / "tokenizer.json").read_bytes())
    for key, value in sorted(text_weights(MODELS / "clip").items()):
        digest.update(key.encode() + value.half().numpy().tobytes())
    return digest.hexdigest()


def ensure(name: str) -> Path:
    """The diffusers folder of an embedded base, assembled in the cache if it is not there yet.

    Raises UserError for an unknown name, or one without weights in the package.
    """
    if name not in NAMES:
        raise UserError(f"unknown embedded base {name!r}; {nearest(name, NAMES)}")
    if name not in names():
        raise UserError(f"the weights of {name} are not in this package; make them with: impasto pretrain {name}")
    folder = cache_dir("bases", f"{name}-{weights_hash(name)[:12]}")
    if not is_complete(folder):
        with atomic_folder(folder, is_complete) as scratch:
            with quiet():
                write_folder(scratch, MODELS / name, autoencoder(name), MODELS / "clip")
            sizes = {file.relative_to(scratch).as_posix(): file.stat().st_size for file in scratch.rglob("*.*")}
            (scratch / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    return folder


def is_complete(folder: Path) -> bool:
    """Whether an assembled folder has all of its files, in their original sizes."""
    try:
        listed = folder / SIZES
        sizes = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {"model_index.json": None}
        return all((folder / name).stat().st_size == size or size is None for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def write_folder(folder: Path, base: Path, autoencoder: Path, clip: Path) -> None:
    """Assemble `folder` from a base's folder (denoiser, scheduler, card), an autoencoder's and a CLIPModel's.

    The name of the folder `base` is the base's name and selects the pipeline.
    """
    for part in (DENOISER[base.name], "scheduler"):
        shutil.copytree(base / part, folder / part)
    tokens = base.name == "mini-muse"
    shutil.copytree(autoencoder, folder / ("vqvae" if tokens else "vae"))
    write_text = {"mini-sd3": write_sd3_text, "mini-sd15": write_sd15_text, "mini-muse": write_muse_text}[base.name]
    index = write_text(folder, clip)
    (folder / "impasto.json").write_text(json.dumps({"name": base.name}), encoding="utf-8")
    if (base / "card.json").exists():
        shutil.copy(base / "card.json", folder / "card.json")
    own = {"vqvae": ["diffusers", "VQModel"]} if tokens else {"vae": ["diffusers", "AutoencoderKL"]}
    common = {"_diffusers_version": "0.42.1"} | own
    (folder / "model_index.json").write_text(json.dumps(index | common, indent=2), encoding="utf-8")


def write_sd15_text(folder: Path, clip: Path) -> dict[str, Any]:
    """Write the small CLIP's text tower and tokeniser; returns the pipeline's index."""
    from transformers import CLIPTextModel

    tower = text_tower(clip)
    plain = CLIPTextModel(tower.config)
    plain.load_state_dict(tower.text_model.state_dict())
    _save_fp16(plain, folder / "text_encoder")
    clip_tokenizer(clip).save_pretrained(folder / "tokenizer")
    return {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }


def write_muse_text(folder: Path, clip: Path) -> dict[str, Any]:
    """Write the small CLIP's text tower and tokeniser; returns the pipeline's index."""
    _save_fp16(text_tower(clip), folder / "text_encoder")
    clip_tokenizer(clip).save_pretrained(folder / "tokenizer")
    return {
        "_class_name": "AmusedPipeline",
        "scheduler": ["diffusers", "AmusedScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "UVit2DModel"],
    }


def write_sd3_text(folder: Path, clip: Path) -> dict[str, Any]:
    """Write the small CLIP's text tower and tokeniser, a second tower and a T5 of zeros; returns the index."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    tower = text_tower(clip)
    _save_fp16(tower, folder / "text_encoder")
    tokenizer = clip_tokenizer(clip)
    tokenizer.save_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer_2")
    zero = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=ZERO_WIDTH,
            intermediate_size=ZERO_WIDTH,
            num_hidden_layers=3,  # SD3 reads hidden_states[-2]
            num_attention_heads=1,
            max_position_embeddings=tower.config.max_position_embeddings,
            projection_dim=ZERO_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for parameter in zero.parameters():
            parameter.zero_()
    _save_fp16(zero, folder / "text_encoder_2")
    width = tower.config.hidden_size + ZERO_WIDTH
    t5 = T5EncoderModel(
        T5Config(vocab_size=4, d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1, is_encoder_decoder=False)
    )
    with torch.no_grad():
        for parameter in t5.parameters():
            parameter.zero_()
    _save_fp16(t5, folder / "text_encoder_3")
    empty_t5_tokenizer().save_pretrained(folder / "tokenizer_3")
    return {
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "PreTrainedTokenizerFast"],  # T5TokenizerFast would replace the rules
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }


def clip_tokenizer(clip: Path):
    """The tokeniser of a saved CLIPModel, without the offline flag that it would save into the hashed folder."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip)
    tokenizer.init_kwargs["local_files_only"] = False
    return tokenizer


def text_tower(clip: Path):
    """The text tower of a saved CLIPModel as a CLIPTextModelWithProjection, float32."""
    from transformers import CLIPConfig, CLIPTextModelWithProjection

    config: Any = CLIPConfig.from_pretrained(clip).text_config
    tower = CLIPTextModelWithProjection(config)
    missing, unexpected = tower.load_state_dict(text_weights(clip), strict=False)
    if unexpected or [name for name in missing if not name.endswith("position_ids")]:
        raise UserError(f"{clip} is not the small CLIP: missing {missing}, unexpected {unexpected}")
    return tower.eval()


def text_weights(clip: Path) -> dict[str, torch.Tensor]:
    """The tensors `text_model.*` and `text_projection.*` of a saved CLIPModel, float32."""
    stored = load_file(clip / "model.safetensors")
    return {k: value.float() for k, value in stored.items() if k.startswith(("text_model.", "text_projection."))}


def empty_t5_tokenizer():
    """A T5 tokeniser that encodes every text as empty (one end token, then padding), so that nothing is truncated."""
    from tokenizers import Regex, Tokenizer, normalizers, processors
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], unk_id=2))
    backend.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


def _save_fp16(model, folder: Path) -> None:
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2), encoding="utf-8")
