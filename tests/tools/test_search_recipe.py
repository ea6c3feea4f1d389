"""The search for the recipe `impasto`: its variants are recipes, and it does not look at what is reported later."""

import json

import pytest

from impasto.artworld import load_meta
from impasto.config import flatten, resolve


@pytest.fixture
def search(load_tool):
    return load_tool("search_recipe")


@pytest.mark.parametrize("base", ["mini-sd3", "mini-sd15"])
def test_variants_are_recipes_and_differ_from_start(search, base, tmp_path):
    files, _ = search.write_inputs(base, tmp_path, 1)
    configs = [flatten(resolve(file, base)) | {"recipe": ""} for file in files]
    assert configs[0]["noise_mean"] == -1.84 and configs[0]["sampling.strength"] == 1.0
    assert all(configs.count(config) == 1 for config in configs)


def test_references_are_secondary_and_prompts_free(search, tmp_path):
    rows, meta = json.loads(search.write_inputs("mini-sd3", tmp_path, 4)[1].read_text()), load_meta()
    secondary = {meta["style_names"][i] for i in meta["split"]["secondary_styles"]}
    assert {row["style"] for row in rows} == secondary
    known = {meta["concepts"][c]["label"] for c in meta["split"]["evaluation_concepts"]}
    asked = {prompt.split(",")[0] for row in rows for prompt in row["prompts"]}
    assert not asked & known and len(asked) > 20
