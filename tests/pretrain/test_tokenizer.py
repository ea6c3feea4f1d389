"""The trained tokeniser encodes everything and has merges."""

from impasto.pretrain.tokenizer import EOS, MAX_TOKENS, train_tokenizer


def test_train_tokenizer_encodes_anything(tmp_path):
    tokenizer = train_tokenizer(["a rocket, flat colours", "a cactus in pixel art"] * 50, ["rockery", "art"], tmp_path)
    assert tokenizer.tokenize("A  Rocket") == ["a</w>", "rocket</w>"]  # lower case, merged to the whole word
    assert tokenizer.model_max_length == MAX_TOKENS
    odd = tokenizer("zebra 😀 ÿ7").input_ids
    assert tokenizer.convert_tokens_to_ids(EOS) not in odd[:-1]
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("zebra 😀 ÿ7, a cactus").input_ids == tokenizer("zebra 😀 ÿ7, a cactus").input_ids
    assert len({*again("rocket").input_ids} ^ {*again("cactus").input_ids}) == 2
