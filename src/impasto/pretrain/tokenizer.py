"""The embedded tokeniser: a CLIP byte-pair encoding of 4,096 tokens, trained on the art world's captions.

A general English word list is added, so that words outside the captions split into few tokens, and all 256 bytes are in
the alphabet, so that nothing is unknown. Every caption of the templates fits 32 tokens (tested). `CLIPTokenizer` needs
a BPE with merges; a word-level file would load as an empty tokeniser without an error.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import trainers
from transformers import CLIPTokenizer

VOCABULARY = 4096
MAX_TOKENS = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], words: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Train on `captions` (with repetitions) and `words`; save to `folder` and return the tokeniser."""
    blank: Any = CLIPTokenizer(vocab={BOS: 0, EOS: 1}, merges=[])
    backend = blank.backend_tokenizer  # lower-cases, splits as CLIP does, maps bytes to letters
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=byte_letters(),
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator([*captions, *words], trainer)
    model = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    vocab: Any = _with_final_bytes(model["vocab"])
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def byte_letters() -> list[str]:
    """The 256 printable characters that represent bytes in byte-level BPE (GPT-2's table)."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _with_final_bytes(vocab: dict[str, int]) -> dict[str, int]:
    """Add each byte's word-final form `x</w>`, which the trainer omits and without which a last letter is unknown."""
    for letter in byte_letters():
        vocab.setdefault(letter + "</w>", len(vocab))
    return vocab
