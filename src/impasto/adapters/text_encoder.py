"""Text conditioning: how captions become conditions while a model is trained. Frozen encoders, a LoRA on CLIP, or
learned tokens.

Where something of the CLIP text encoders is trained, captions are encoded with gradient at every step, and what was
cached of them is replaced; T5 is never trained, and its part stays cached. The LoRA has diffusers' layers (q, k, v and
out of every attention) and names ("text_encoder_lora_...").
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from impasto.adapters import TEXT, lora, token
from impasto.adapters.config import FrozenText, TextLoRA, TextToken
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.families.base import Condition, Family
from impasto.optim.config import OptimConfig
from impasto.registry import name_of

LAYERS = ["k_proj", "out_proj", "q_proj", "v_proj"]
PREFIX = "text_encoder"
"""Of the names of everything trained here."""


class TextConditioning:
    """Frozen text encoders, and the contract of all text conditionings. adapter: settings of the denoiser's adapter.

    Nothing is loaded before `attach`.
    """

    def __init__(self, settings: Any, optim: OptimConfig, adapter: Any, seed: int) -> None:
        self.settings, self.optim, self.adapter, self.seed = settings, optim, adapter, seed

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates by prefix of the parameters' names, where they are not `optim.lr`."""
        return {}

    @property
    def trained(self) -> bool:
        """Whether captions have to be encoded anew at every step."""
        return False

    def check(self, family: Family, shards: bool) -> None:
        """Raise UserError where this base's encoders cannot be trained. shards: the base is sharded over processes."""

    def attach(self, family: Family) -> dict[str, nn.Parameter]:
        """Put what is trained on the encoders of `family`; its parameters by name, float32."""
        return {}

    def spell(self, prompt: str) -> str:
        """The prompt as the base's own encoders read it: whose condition is cached."""
        return prompt

    def encode(self, prompts: Sequence[str], cond: Condition) -> Condition:
        """`cond`, cached of the base for these prompts, as the encoders have it now, with gradient."""
        return cond

    def reencode(self, batch: Batch) -> Batch:
        """The batch with its captions' condition as the encoders have it now, the base's own beside it."""
        cond = self.encode(batch.prompts, batch.cond)
        return batch if cond is batch.cond else replace(batch, cond=cond, base_cond=batch.cond)

    def models(self) -> dict[str, Any]:
        """{component of the pipeline: text encoder that is trained}."""
        return {}

    def state(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """{component: (tensors, configuration)} of the adapters on the encoders, under the names of files."""
        return {}

    def write(self, folder: Path) -> list[tuple[str, str]]:
        """Write files of its own to a style folder; (kind, file) of each, as parts of the style."""
        return []


class TrainedClip(TextConditioning):
    """Something is trained on every CLIP of the base. Knows its `family` from `attach` on."""

    family: Family

    @property
    def trained(self) -> bool:
        return True

    def encode(self, prompts: Sequence[str], cond: Condition) -> Condition:
        return self.family.embed_clip(prompts, cond)

    def models(self) -> dict[str, Any]:
        return {part: getattr(self.family.clip, part) for part in self.family.clip_parts}


class ClipLoRA(TrainedClip):
    """A LoRA called "default" on every CLIP of the base."""

    settings: TextLoRA

    @property
    def rates(self) -> Mapping[str, float]:
        """Half of the denoiser's when none is given, prodigy's one rate for all."""
        usual = self.optim.lr if self.optim.optimizer == "prodigy" else self.optim.lr / 2
        return {PREFIX: usual if self.settings.lr is None else self.settings.lr}

    @property
    def rank(self) -> int:
        return self.settings.rank or getattr(self.adapter, "rank", 32)

    def check(self, family: Family, shards: bool) -> None:
        """Also warns of what stays frozen."""
        if not family.clip_parts:
            raise UserError("--text lora trains CLIP, and this base has none: leave it out")
        if shards:
            raise UserError("--text lora does not work with a base sharded over processes: leave one of them out")
        if any(name.startswith(PREFIX) and name not in family.clip_parts for name in family.encoder_parts):
            warnings.warn("--text lora trains the CLIP encoders; T5 stays as it is", stacklevel=2)

    def attach(self, family: Family) -> dict[str, nn.Parameter]:
        """See `lora.attach`; names begin with the component, "text_encoder."."""
        self.family = family
        alpha = self.settings.alpha or (None if self.settings.rank else getattr(self.adapter, "alpha", None))
        parameters: dict[str, nn.Parameter] = {}
        for part in family.clip_parts:
            encoder = getattr(family.clip, part).requires_grad_(False).eval()
            parameters |= lora.attach(encoder, self.rank, alpha, LAYERS, self.seed, prefix=f"{part}.")
        return parameters

    def state(self) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """transformers 5 has some CLIPs without "text_model.", which other readers look for."""
        from peft.utils import get_peft_model_state_dict

        found = {}
        for part, encoder in self.models().items():
            config = encoder.peft_config["default"].to_dict()
            config["target_modules"] = sorted(config["target_modules"])  # a set has another order each time
            tensors = get_peft_model_state_dict(encoder, adapter_name="default")
            named = {f"text_model.{name.removeprefix('text_model.')}": t.cpu() for name, t in tensors.items()}
            found[part] = named, config
        return found


class LearnedTokens(TrainedClip):
    """Tokens for style words on every CLIP of the base, see `adapters.token`."""

    settings: TextToken

    @property
    def rates(self) -> Mapping[str, float]:
        return {PREFIX: self.optim.lr if self.settings.lr is None else self.settings.lr}

    def check(self, family: Family, shards: bool) -> None:
        names = " ".join(self.settings.tokens)
        if not family.clip_parts:
            raise UserError("--text token needs a CLIP text encoder, and this base has none: leave it out")
        if shards:
            raise UserError("--text token does not work with a base sharded over processes: leave one of them out")
        if not self.settings.words:
            raise UserError(f"no style words for {names}: name them, as in --text.words 'neon sign'")

    def attach(self, family: Family) -> dict[str, nn.Parameter]:
        """See `token.add`; names begin with the component, "text_encoder."."""
        self.family, self.checked = family, set[str]()
        self.tokens: list[token.Token] = []
        self.parameters: dict[str, nn.Parameter] = {}
        for name, words in zip(self.settings.tokens, self.settings.words, strict=True):
            one, parameters = token.add(family, name, words, self.settings.rows)
            self.tokens.append(one)
            self.parameters |= parameters
        return self.parameters

    def spell(self, prompt: str) -> str:
        for name, words in zip(self.settings.tokens, self.settings.words, strict=True):
            prompt = prompt.replace(name, words)
        return prompt

    def encode(self, prompts: Sequence[str], cond: Condition) -> Condition:
        """Raises UserError for a prompt that is too long with its tokens written out."""
        for prompt in set(prompts) - self.checked:
            token.check_prompt(self.family, self.tokens, prompt)
            self.checked.add(prompt)
        return super().encode(prompts, cond)

    def write(self, folder: Path) -> list[tuple[str, str]]:
        """`learned_embeds.safetensors`, and one more file for each further token."""
        files = [token.embeds_file(i) for i in range(len(self.tokens))]
        for file, one in zip(files, self.tokens, strict=True):
            token.write(folder / file, one, self.parameters)
        return [("token", file) for file in files]


def build_text(config: Any) -> TextConditioning:
    """The text conditioning of a TrainConfig."""
    entry = TEXT[name_of(TEXT, config.text)]
    return entry.builder(config.text, config.optim, config.adapter, config.seed)


FROZEN = TextConditioning(FrozenText(), OptimConfig(), None, 0)
