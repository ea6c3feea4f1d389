"""Saving adapters and learned tokens as a style folder."""

from pathlib import Path

from impasto.adapters.base import Adapter
from impasto.adapters.lora import ADAPTER as LORA
from impasto.adapters.text_encoder import FROZEN, TextConditioning
from impasto.families.base import Family
from impasto.files import atomic
from impasto.styles.parts import WEIGHTS, Part, write_parts
from impasto.styles.weights import read_file, write_tensors


def save(family: Family, folder: Path, text: TextConditioning = FROZEN, adapter: Adapter = LORA) -> Path:
    """Write the adapters of the denoiser and of the text encoders to `folder`; returns the denoiser's file.

    A LoRA is written as diffusers reads it, alpha in its metadata, with that of the text encoders in the same file;
    other adapters and learned tokens have files of their own, and `style.json` lists the parts.
    """
    from peft.utils import get_peft_model_state_dict

    loras, parts = text.state(), []
    if adapter.state is None:
        tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
        metadata = family.denoiser.peft_config["default"].to_dict()
        loras = {family.part: ({k: v.cpu() for k, v in tensors.items()}, metadata)} | loras
    else:
        parts.append(Part(adapter.kind, f"{adapter.kind}.safetensors"))
        with atomic(folder / parts[0].file) as file:
            write_tensors(file, *adapter.state(family))
        if adapter.write_base is not None:
            adapter.write_base(family, folder, folder / parts[0].file)
    if loras:
        parts.append(Part("lora", WEIGHTS))
        with atomic(folder / WEIGHTS) as file:
            family.save_adapter(file, loras)
            write_tensors(file, *read_file(file))
    parts += [Part(kind, file) for kind, file in text.write(folder)]
    write_parts(folder, parts, adapter.sampling)
    return folder / parts[0].file
