"""Saving an adapter as a style folder."""

from pathlib import Path

from impasto.adapters.text_encoder import FROZEN, TextConditioning
from impasto.families.base import Family
from impasto.files import atomic
from impasto.styles.weights import WEIGHTS, read_file, write_tensors


def save(family: Family, folder: Path, text: TextConditioning = FROZEN) -> Path:
    """Write the adapters of the denoiser and of the text encoders to `folder`, with alpha in the metadata; returns the
    file."""
    from peft.utils import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    metadata = family.denoiser.peft_config["default"].to_dict()
    with atomic(folder / WEIGHTS) as file:
        own = {family.part: ({k: v.cpu() for k, v in tensors.items()}, metadata)}
        family.save_adapter(file, own | text.state())
        write_tensors(file, *read_file(file))
    return folder / WEIGHTS
