"""Learned tokens in the CLIPs: initialisation, training, and the file that diffusers reads."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from impasto.adapters import token as tokens
from impasto.bases.loader import load
from impasto.errors import UserError

WORDS, PROMPT = "pixel art style", "a cat, pixel art style"
TOKEN_PROMPT = "a cat, <style1>"
BASES = ["tiny_sd15", "tiny_sdxl", "tiny_sd3", "tiny_flux"]


@pytest.fixture(params=BASES)
def family(request):
    return load(str(request.getfixturevalue(request.param)), device="cpu", precision="fp32")


def plain(folder):
    name = json.loads((Path(folder) / "model_index.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(folder)


def train(family, parameters, prompts=(TOKEN_PROMPT,), steps=3):
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1, weight_decay=0.5)
    cond = family.encode_prompt(list(prompts))
    for _ in range(steps):
        loss = sum(rows.float().square().mean() for rows in family.embed_clip(list(prompts), cond).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_token_of_all_rows_is_the_words_before_training(family):
    truth = family.encode_prompt([PROMPT, "a rocket"])
    token, parameters = tokens.add(family, "<style1>", WORDS)
    assert token.rows == 3 and all(p.shape[0] == 3 and p.dtype == torch.float32 for p in parameters.values())
    assert len(parameters) == len(family.clip_parts)
    assert equal(tokens.encode(family, [token], [TOKEN_PROMPT, "a rocket"]), truth)
    assert token.place(PROMPT) == TOKEN_PROMPT and token.spell(TOKEN_PROMPT) == PROMPT


def test_token_of_one_row_is_their_mean(tiny_sd15):
    family = load(str(tiny_sd15), device="cpu")
    weight = family.clip.text_encoder.get_input_embeddings().weight.clone()
    ids = family.clip.tokenizer(WORDS, add_special_tokens=False).input_ids
    _, parameters = tokens.add(family, "<style1>", WORDS, "1")
    assert torch.allclose(parameters["text_encoder.token.<style1>"], weight[ids].mean(0, keepdim=True))


def test_training_moves_the_token_s_rows_alone(family):
    before = {
        part: {k: v.clone() for k, v in getattr(family.clip, part).state_dict().items()} for part in family.clip_parts
    }
    truth = family.encode_prompt(["a rocket, pixel art style"])
    _, first = tokens.add(family, "<style1>", WORDS)
    token, second = tokens.add(family, "<style2>", "neon style")
    start = {name: p.detach().clone() for name, p in (first | second).items()}
    train(family, first | second, [TOKEN_PROMPT])
    assert all((p != start[name]).any() for name, p in first.items())
    for part in family.clip_parts:
        encoder = getattr(family.clip, part)
        after = {k.replace("token_embedding.base", "token_embedding"): v for k, v in encoder.state_dict().items()}
        assert all(torch.equal(after[name], value) for name, value in before[part].items())
        assert [name for name, p in encoder.named_parameters() if p.requires_grad] == [
            name for name, _ in encoder.named_parameters() if ".rows." in name
        ]
    assert equal(tokens.encode(family, [token], ["a rocket, pixel art style"]), truth)
    assert not equal(tokens.encode(family, [token], [TOKEN_PROMPT]), family.encode_prompt([PROMPT]))


def test_two_tokens_stand_for_their_own_words(family):
    truth = family.encode_prompt(["a cat, pixel art style, neon style"])
    both = [tokens.add(family, "<style1>", WORDS)[0], tokens.add(family, "<style2>", "neon style")[0]]
    assert equal(tokens.encode(family, both, ["a cat, <style1>, <style2>"]), truth)


def test_saved_token_loads_into_plain_pipelines(family, tmp_path):
    """By our `load` on every base, and by diffusers' `load_textual_inversion` where its pipeline has it."""
    token, parameters = tokens.add(family, "<style1>", WORDS)
    train(family, parameters)
    truth = tokens.encode(family, [token], [TOKEN_PROMPT])
    clips = set(truth) if family.pipeline_class != "FluxPipeline" else {"pooled"}
    tokens.write(tmp_path / tokens.EMBEDS, token, parameters)
    first = (tmp_path / tokens.EMBEDS).read_bytes()
    tokens.write(tmp_path / tokens.EMBEDS, *tokens_of(tmp_path / tokens.EMBEDS))
    assert (tmp_path / tokens.EMBEDS).read_bytes() == first

    ours = plain(family.folder)
    assert tokens.load(ours, tmp_path / tokens.EMBEDS) == token
    found = family.encode_prompt([TOKEN_PROMPT], pipe=ours)
    rows = family.clip.tokenizer_max_length if family.pipeline_class == "StableDiffusion3Pipeline" else None
    assert all(torch.equal(found[name][:, :rows], truth[name][:, :rows]) for name in clips)
    if hasattr(ours, "load_textual_inversion"):
        theirs = plain(family.folder)
        if len(family.clip_parts) == 1:
            theirs.load_textual_inversion(tmp_path)
        else:
            saved = load_file(tmp_path / tokens.EMBEDS)
            for key, end in (("clip_l", ""), ("clip_g", "_2")):
                encoder, tokenizer = getattr(theirs, f"text_encoder{end}"), getattr(theirs, f"tokenizer{end}")
                theirs.load_textual_inversion(saved[key], token="<style1>", text_encoder=encoder, tokenizer=tokenizer)
        assert equal(family.encode_prompt([TOKEN_PROMPT], pipe=theirs), found)


def tokens_of(file):
    token, rows = tokens.read(file)
    return token, {f"{part}.token.{token.name}": t for part, t in rows.items()}


def test_attached_rows_are_those_of_the_file(tiny_sdxl, tmp_path):
    family, again = (load(str(tiny_sdxl), device="cpu") for _ in range(2))
    token, parameters = tokens.add(family, "<style1>", WORDS)
    train(family, parameters)
    tokens.write(tmp_path / tokens.EMBEDS, token, parameters)
    tokens.attach(again, *tokens.read(tmp_path / tokens.EMBEDS))
    assert equal(tokens.encode(again, [token], [TOKEN_PROMPT]), tokens.encode(family, [token], [TOKEN_PROMPT]))


def test_legacy_end_token_is_found_behind_the_token(tiny_flux):
    """A CLIP whose eos_token_id is 2 takes the largest id for the end: OpenAI's in FLUX, SD3 and SDXL."""
    family = load(str(tiny_flux), device="cpu")
    family.clip.text_encoder.eos_token_id = 2
    truth = family.embed_clip([PROMPT], family.encode_prompt([PROMPT]))
    token, _ = tokens.add(family, "<style1>", WORDS)
    assert equal(tokens.encode(family, [token], [TOKEN_PROMPT]), truth)


def test_bad_input(tiny_sd15, tiny_sdxl, tmp_path):
    family = load(str(tiny_sd15), device="cpu")
    for name in ("cat", "<|endoftext|>"):
        with pytest.raises(UserError, match="is in the vocabulary"):
            tokens.add(family, name, WORDS)
    with pytest.raises(UserError, match="style words of <style1> are empty"):
        tokens.add(family, "<style1>", " ")
    token, parameters = tokens.add(family, "<style1>", WORDS)
    with pytest.raises(UserError, match="<style1>' is in the vocabulary"):
        tokens.add(family, "<style1>", WORDS)
    tokens.check_prompt(family, [token], TOKEN_PROMPT)
    with pytest.raises(UserError, match=r"33 tokens with the 3 of <style1>, the text encoder reads 32"):
        tokens.check_prompt(family, [token], " ".join(["a"] * 28) + " <style1>")
    tokens.write(tmp_path / tokens.EMBEDS, token, parameters)
    with pytest.raises(UserError, match="cannot be read"):
        tokens.read(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / tokens.EMBEDS).read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        tokens.read(tmp_path / "cut.safetensors")
    other = load(str(tiny_sdxl), device="cpu").clip
    other.text_encoder = other.text_encoder_2
    with pytest.raises(UserError, match="another base: text_encoder has width 12, not 16"):
        tokens.load(other, tmp_path / tokens.EMBEDS)
