"""Learned tokens: new rows in the CLIPs' token embeddings, the only weights of the text encoders that are trained.

A token <style1> stands for style words. rows "all": one row for each of their n sub-tokens, so that before the first
step the token is exactly the words; "1": one row, their mean. Textual inversion: Gal et al. 2022, arXiv 2208.01618;
InstaStyle (arXiv 2311.15040, section 3.3) has a token of one row.

A prompt holds the token's name; the pipelines write it out as diffusers does, "<style1> <style1>_1 .. <style1>_n-1".
T5 has no such rows and reads the words: `Token.spell`. Saved as learned_embeds.safetensors, as `load_textual_inversion`
of diffusers reads it: {name: (n, D)} for one CLIP, {"clip_l": (n, D1), "clip_g": (n, D2)} for two.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from impasto.errors import UserError
from impasto.families.base import Condition, Family
from impasto.files import atomic

EMBEDS = "learned_embeds.safetensors"
"""The file of a style's first token, as diffusers looks for it."""
TWO_CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
KEY = "impasto"


@dataclass(frozen=True)
class Token:
    """name: as prompts have it. words: the style words that it was initialised with. rows: of the embedding."""

    name: str
    words: str
    rows: int

    @property
    def names(self) -> list[str]:
        """Of its rows, as diffusers calls them."""
        return [self.name, *(f"{self.name}_{i}" for i in range(1, self.rows))]

    def place(self, prompt: str) -> str:
        """The prompt with the name in place of the words, where they are words of their own."""
        return re.sub(rf"(?<!\w){re.escape(self.words)}(?!\w)", lambda found: self.name, prompt)

    def spell(self, prompt: str) -> str:
        """The prompt with the words in place of the name."""
        return prompt.replace(self.name, self.words)


class TokenEmbedding(nn.Module):
    """A frozen embedding of the vocabulary, and learned rows for the ids from `first` on: ids (..) -> (.., D).

    The vocabulary's rows are no parameters of the optimiser's and stay as they are, bit for bit, whatever its weight
    decay. The learned ones are float32.
    """

    def __init__(self, base: nn.Embedding, first: int) -> None:
        super().__init__()
        self.base, self.first, self.rows = base, first, nn.ParameterList()

    @property
    def weight(self) -> Tensor:
        """The vocabulary's rows."""
        return self.base.weight

    def forward(self, ids: Tensor) -> Tensor:
        known = self.base(ids.clamp(max=min(self.first, self.base.num_embeddings) - 1))
        learned = torch.cat(list(self.rows)).to(known.dtype)[(ids - self.first).clamp(min=0)]
        return torch.where((ids >= self.first)[..., None], learned, known)


def add(
    family: Family, name: str, words: str, rows: Literal["all", "1"] = "all"
) -> tuple[Token, dict[str, nn.Parameter]]:
    """Put a token on every CLIP of `family.clip`; returns it with its rows by "text_encoder.token.<style1>".

    A second token may follow. Raises UserError for a name that the vocabulary has, for words that are empty or that the
    CLIPs split differently, and for a base without CLIP.
    """
    if not family.clip_parts:
        raise UserError("a learned token needs a CLIP text encoder, which this base does not have")
    ids = {
        part: tokenizer_of(family.clip, part)(words, add_special_tokens=False).input_ids for part in family.clip_parts
    }
    lengths = {len(found) for found in ids.values()}
    if lengths == {0}:
        raise UserError(f"the style words of {name} are empty: name the style, as in 'neon sign'")
    if rows == "all" and len(lengths) > 1:
        raise UserError(f"this base's text encoders split {words!r} differently: --token-rows 1")
    token = Token(name, words, lengths.pop() if rows == "all" else 1)
    start = {}
    for part, found in ids.items():
        encoder = getattr(family.clip, part)
        vectors = encoder.get_input_embeddings().weight.detach()[found].float()
        start[part] = vectors if rows == "all" else vectors.mean(0, keepdim=True)
    return token, attach(family, token, start)


def attach(family: Family, token: Token, values: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Put a token with the rows `values`, {part: (n, D)}, on the CLIPs of `family.clip`; returns them as `add` does."""
    parameters = {}
    for part in family.clip_parts:
        encoder, first = getattr(family.clip, part), add_names(family.clip, part, token)
        embedding = encoder.get_input_embeddings()
        if not isinstance(embedding, TokenEmbedding):
            encoder.requires_grad_(False).eval()
            embedding = TokenEmbedding(embedding, first)
            encoder.set_input_embeddings(embedding)
        parameter = nn.Parameter(values[part].clone().float().to(embedding.weight.device))
        embedding.rows.append(parameter)
        parameters[f"{part}.token.{token.name}"] = parameter
    return parameters


def encode(family: Family, tokens: Sequence[Token], prompts: Sequence[str], pipe: Any = None) -> Condition:
    """The condition of prompts with tokens, CLIP's part with gradient; T5, where there is one, reads the words.

    pipe: a pipeline with all text encoders into which the tokens were loaded; by default they are on `family.clip`.
    """
    spelled = list(prompts)
    for token in tokens:
        spelled = [token.spell(prompt) for prompt in spelled]
    return family.embed_clip(prompts, family.encode_prompt(spelled, pipe=pipe), pipe)


def embeds_file(index: int) -> str:
    """The file name of a style's token 0, 1, ..."""
    return EMBEDS if index == 0 else f"learned_embeds_{index + 1}.safetensors"


def check_prompt(family: Family, tokens: Sequence[Token], prompt: str, pipe: Any = None) -> None:
    """Raise UserError where a prompt with tokens written out is longer than a CLIP of `pipe` (`family.clip`) reads."""
    pipe, written = pipe or family.clip, prompt
    for token in tokens:
        written = written.replace(token.name, " ".join(token.names))
    for part in family.clip_parts:
        tokenizer = tokenizer_of(pipe, part)
        length, most = len(tokenizer(written).input_ids), tokenizer.model_max_length
        if written != prompt and length > most:
            rows = ", ".join(f"the {token.rows} of {token.name}" for token in tokens if token.name in prompt)
            raise UserError(
                f"the prompt {prompt!r} is too long: {length} tokens with {rows}, the text encoder reads {most}; "
                "shorten it, or train with --token-rows 1"
            )


def add_names(pipe: Any, part: str, token: Token) -> int:
    """Add the names of a token's rows to the tokeniser of a text encoder; returns the id of the first.

    An encoder of the legacy `eos_token_id` 2 takes the largest id for the end of the text, which would now be the
    token's: it is given the tokeniser's own. Raises UserError for a name that the vocabulary has.
    """
    tokenizer, encoder = tokenizer_of(pipe, part), getattr(pipe, part)
    split = tokenizer.tokenize(token.name)
    if len(split) < 2 or any(name in tokenizer.get_vocab() for name in token.names):
        raise UserError(f"the token {token.name!r} is in the vocabulary: take another name, such as <style1>")
    tokenizer.add_tokens(token.names)
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id
    return tokenizer.convert_tokens_to_ids(token.name)


def tokenizer_of(pipe: Any, part: str) -> Any:
    return getattr(pipe, part.replace("text_encoder", "tokenizer"))


def write(file: Path, token: Token, parameters: Mapping[str, Tensor]) -> None:
    """Save one token's rows, named as `add` names them, among `parameters`. The same rows give the same bytes."""
    rows = {part: parameters.get(f"{part}.token.{token.name}") for part in TWO_CLIPS}
    found = {part: t.detach().float().cpu().contiguous() for part, t in rows.items() if t is not None}
    keys = TWO_CLIPS if len(found) > 1 else dict.fromkeys(found, token.name)
    content = json.dumps(asdict(token) | {"parts": list(found)}, sort_keys=True)
    with atomic(file) as path:
        path.write_bytes(save({keys[part]: t for part, t in found.items()}, {KEY: content}))


def read(file: Path) -> tuple[Token, dict[str, Tensor]]:
    """A token and its rows, {part: (n, D)}. UserError when it is damaged, or not written by `write`."""
    try:
        with safe_open(file, "pt") as opened:
            content = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        token = Token(content["name"], content["words"], content["rows"])
        keys = TWO_CLIPS if len(content["parts"]) > 1 else dict.fromkeys(content["parts"], token.name)
        return token, {part: tensors[keys[part]] for part in content["parts"]}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"the learned token {str(file)!r} cannot be read: {error}") from None
    except (KeyError, TypeError):
        raise UserError(f"{str(file)!r} is not a learned token of impasto") from None


def load(pipe: Any, file: Path) -> Token:
    """Put a saved token into a plain diffusers pipeline, as `load_textual_inversion` does, SD3 included.

    Raises UserError for a token of another architecture, and for a name that the vocabulary has.
    """
    token, values = read(file)
    for part, rows in values.items():
        encoder = getattr(pipe, part, None)
        width = None if encoder is None else encoder.get_input_embeddings().weight.shape[1]
        if encoder is None or width != rows.shape[1]:
            raise UserError(
                f"the learned token {str(file)!r} is of another base: {part} has width {width}, not {rows.shape[1]}"
            )
    for part, rows in values.items():
        encoder, first = getattr(pipe, part), add_names(pipe, part, token)
        encoder.resize_token_embeddings(len(tokenizer_of(pipe, part)), mean_resizing=False)
        weight = encoder.get_input_embeddings().weight
        weight.data[first : first + token.rows] = rows.to(weight)
    return token
