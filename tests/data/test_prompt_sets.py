"""Prompt sets: counts, templates, names."""

import pytest

from impasto.data.prompt_sets import all_prompts, list_prompts, read_prompts
from impasto.errors import UserError

COUNTS = {
    "styledrop-references": 18,
    "style-friendly-subjects": 23,
    "cifar-100": 100,
    "styledrop-round-2": 30,
    "finestyle-probes": 7,
    "evaluation-concepts": 52,
    "instastyle-references": 60,
    "styleinject-200": 200,
}


def test_sets_have_their_sizes_and_state_source_and_licence():
    assert sorted(COUNTS) == list_prompts()
    for one in all_prompts():
        assert len(one.items) == len(set(one.items)) == COUNTS[one.name], one.name
        assert one.title and one.source and one.licence


def test_texts_fill_the_template_with_the_items_own_style_first():
    assert read_prompts("styledrop-references").texts("ignored")[0] == "A house in watercolor painting style"
    assert read_prompts("styledrop-round-2").texts("neon style")[2] == "A chihuahua walking in the forest in neon style"
    assert read_prompts("cifar-100").texts()[0] == "apple"


def test_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cifar-100'"):
        read_prompts("cifar100")
