"""The single measures against hand-computed numbers and properties."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from impasto.errors import UserError
from impasto.evaluation import clip, paired
from impasto.evaluation.judged import concept_rows, style_rows
from impasto.evaluation.leakage import leaks
from impasto.evaluation.samples import to_tensor
from impasto.evaluation.scores import SCORES, means
from impasto.evaluation.spread import bootstrap, summarise, wilson
from impasto.evaluation.table import cell, decimal, scores_table


def test_wilson_matches_hand_computation():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 24) == pytest.approx((0.0, 0.1380), abs=1e-4)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_share(case):
    hits, n = case
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1 and high > low


def test_bootstrap_is_deterministic_and_near_normal_interval():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_summarise_excludes_none():
    assert summarise([None, None]) == (None, None, 0)
    assert summarise([]) == (None, None, 0)
    mean, interval, n = summarise([True, None, False])
    assert (mean, n) == (0.5, 2) and interval == list(wilson(1, 2))
    assert summarise([0.2, None, 0.4])[0] == pytest.approx(0.3)


def test_means_covers_all_scores():
    result = means([{"style_accuracy": True}, {"style_accuracy": None}])
    assert result["style_accuracy"] == 1.0 and result["n"]["style_accuracy"] == 1
    assert all(result[name] is None for name in SCORES if name != "style_accuracy")


def test_ssim_and_mse_known_values():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(paired.ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert torch.equal(paired.mse(x, x), torch.zeros(2))
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert paired.mse(black, white).item() == 1.0
    # flat images: only the luminance term remains, C1 / (1 + C1)
    assert paired.ssim(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-6)
    assert paired.ssim(x, 1 - x).max() < 0, "a negative is anticorrelated"
    noisy = [paired.ssim(x, (x + s * torch.randn_like(x)).clamp(0, 1)).mean() for s in (0.05, 0.2, 0.5)]
    assert noisy[0] > noisy[1] > noisy[2]


def test_palette_ignores_places_and_ground_the_inside():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    moved = x.roll((5, 9), dims=(2, 3))
    assert torch.allclose(paired.palette(x, moved), torch.zeros(2)) and (paired.ground(x, moved) > 30).all()
    inside = x.clone()
    inside[:, :, 6:-6, 6:-6] = 0
    assert torch.equal(paired.ground(x, inside), torch.zeros(2)) and (paired.palette(x, inside) > 10).all()
    red, blue = (torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 32, 32) for colour in ([1.0, 0, 0], [0, 0, 1.0]))
    assert paired.palette(red, blue).item() == paired.ground(red, blue).item() == pytest.approx(170)


def test_style_rows_known_values():
    rows = style_rows(torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.7, 0.2]]), ["a", "b", "c"], ["k", "k", "m"], 0)
    assert [row["style_accuracy"] for row in rows] == [True, False]
    assert [row["kind_accuracy"] for row in rows] == [True, True]
    assert rows[1]["style_probability"] == pytest.approx(0.1) and rows[1]["style_judged"] == "b"
    assert style_rows(torch.tensor([[1.0, 0.0]]), ["a", "b"], ["k", "k"], None)[0]["style_accuracy"] is None


def test_concept_rows_count_ties_against_image():
    names = [f"c{i}" for i in range(7)]
    probabilities = torch.tensor([[0.9, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]])
    assert concept_rows(probabilities, names, [0])[0]["concept_rank"] == 1
    assert concept_rows(probabilities, names, [1])[0]["concept_rank"] == 3
    assert concept_rows(probabilities, names, [5])[0]["concept_top5"] is False
    flat = concept_rows(torch.full((1, 7), 0.5), names, [0])[0]
    assert flat["concept_rank"] == 7 and not flat["concept_top5"], "a constant judge finds nothing"
    assert concept_rows(probabilities, names, [None])[0]["concept_top1"] is None


def test_leaks_known_values():
    probabilities = torch.tensor([[0.1, 0.9], [0.1, 0.2], [0.1, 0.9], [0.1, 0.9]])
    assert leaks(probabilities, [0, 0, 1, None], 1, 0.5) == [True, False, None, None]
    assert leaks(probabilities, [0, 0, 1, None], None, 0.5) == [None] * 4


def test_clip_i_style_excludes_own_concept():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert clip.clip_i_style(images, images, [5, 6], [5, 6]).tolist() == [0.0, 0.0]
    assert clip.clip_i_style(images[:1], images[:1], [5], [5]).isnan().all(), "unknown without a comparison"


def test_to_tensor_resizes():
    batch = to_tensor([Image.new("RGB", (128, 128), "white"), Image.new("RGB", (64, 200), (255, 0, 0))])
    assert batch.shape == (2, 3, 128, 128) and batch.min() == 0 and batch.max() == 1
    assert batch[1, 0].min() == 1 and batch[1, 1].max() == 0


def test_scores_table_shows_intervals_and_dashes():
    column = {"leakage": 0.25, "clip_t": -0.04, "interval": {"leakage": [0.1, 0.5], "clip_t": None}}
    assert cell(column, "leakage") == "25 %\n[dim]10–50[/dim]"
    assert cell(column, "clip_t") == "-.040" == decimal(-0.04)
    assert cell(column, "ssim") == "–" == cell(None, "ssim")
    assert scores_table({"a": column, "b": None}).row_count == 2
    assert [decimal(x) for x in (1.0, 0.5, -0.04, 10.25, 255)] == ["1.000", ".500", "-.040", "10.2", "255.0"]


def test_scores_table_does_not_interpret_markup():
    console = Console(width=80, file=io.StringIO())
    console.print(scores_table({"a[/b]": {"ssim": 0.5}, "[red]c": {"ssim": 0.5}}, "x[/y] o[final] :cat:"))
    shown = console.file.getvalue()
    assert all(name in shown for name in ("a[/b]", "[red]c", "x[/y] o[final] :cat:"))


def test_load_encoder_unknown_raises_one_line(tmp_path):
    from impasto.evaluation import load_encoder

    with pytest.raises(UserError, match="no encoder at"):
        load_encoder(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        load_encoder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A tiny random CLIP with tokenizer and a tiny random ViT (DINO's architecture), as transformers folders."""
    from tiny import encoder_folders

    folders = {name: tmp_path_factory.mktemp(name) for name in ("clip", "dino")}
    encoder_folders(**folders)
    return folders


def test_encoder_of_clip_and_dino(encoders):
    from impasto.evaluation import load_encoder

    pictures = [Image.new("RGB", (50, 40), colour) for colour in ("red", "navy", "white")]
    for name, folder in encoders.items():
        encoder = load_encoder(folder)
        vectors = encoder.images(pictures)
        assert vectors.shape[0] == 3 and torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
        assert torch.allclose(vectors[1:2], encoder.images(pictures[1:2]), atol=1e-5), "independent of the batch"
        texts = encoder.texts(["a rocket in pixel art style", "a cat " * 40])
        assert (texts is None) == (name == "dino")
        if texts is not None:
            assert texts.shape == (2, vectors.shape[1]) and not torch.allclose(texts[0], texts[1], atol=1e-3)
