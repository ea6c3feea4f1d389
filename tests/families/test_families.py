"""Every family against its pipeline's own code."""

import inspect
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline

from impasto.bases.loader import load
from impasto.devices import resolve_device
from impasto.errors import UserError
from impasto.sampling.sample import Sampling

PROMPT = "a rocket in pixel art style"


@pytest.fixture(scope="module")
def family(tiny_base):
    return load(str(tiny_base), device="cpu")


@pytest.fixture(scope="module")
def pipe(tiny_base):
    pipe = DiffusionPipeline.from_pretrained(tiny_base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def record_calls(model, monkeypatch):
    """Each call of a denoiser as (arguments by name, output)."""
    calls, forward = [], model.forward
    names = inspect.signature(type(model).forward)

    def spy(*args, **kwargs):
        out = forward(*args, **kwargs)
        given = names.bind(model, *args, **kwargs).arguments
        given |= given.pop("added_cond_kwargs", None) or {}
        calls.append(({name: v for name, v in given.items() if isinstance(v, torch.Tensor)}, out[0]))
        return out

    monkeypatch.setattr(model, "forward", spy)
    return calls


def call(family, **more):
    """Arguments of a plain pipeline call without comparison to a negative prompt."""
    length = next(iter(family.text_lengths))
    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "height": 16, "width": 16}
    return settings | {"generator": torch.Generator().manual_seed(0)} | family.padding(length) | more


def test_predict_matches_pipeline_call(family, pipe, monkeypatch):
    """At the third of four steps: latents, timestep, texts, positions, sizes and guidance, then the output."""
    theirs = record_calls(getattr(pipe, family.part), monkeypatch)
    ours = record_calls(family.denoiser, monkeypatch)
    pipe(PROMPT, **call(family))
    expected, expected_output = theirs[2]
    z = expected.get("hidden_states", expected.get("sample"))
    z = z if z.ndim == 4 else family.unpack(z, (16, 16))
    t = expected["timestep"].double().expand(1)
    with torch.no_grad():
        out = family.predict(z, family.schedule.log_snr(t).float(), family.encode_prompt([PROMPT]))
    ((found, output),) = ours
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name].float(), expected[name].float().expand_as(found[name]), atol=2e-4), name
    assert torch.allclose(output, expected_output, atol=1e-4)
    unpacked = expected_output if expected_output.ndim == 4 else family.unpack(expected_output, (16, 16))
    assert torch.allclose(out, unpacked, atol=1e-4)


def test_decode_and_encode_image_match_pipeline(family, pipe):
    """`decode` of the pipeline's latents gives its image; `encode_image` gives the posterior's mean, scaled."""
    latents = pipe(PROMPT, **call(family, output_type="latent")).images
    picture = pipe(PROMPT, **call(family, output_type="pt")).images
    z = family.unpack(latents, (16, 16))
    assert z.shape == (1, 4, 4, 4)
    assert torch.allclose((family.decode(z) / 2 + 0.5).clamp(0, 1), picture, atol=1e-5)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours, mean = family.encode_image(pixels), pipe.vae.encode(pixels).latent_dist.mean
    assert ours.dtype == torch.float32 and torch.allclose(family.decode(ours), pipe.vae.decode(mean).sample, atol=1e-5)


def test_target_recovers_x(family):
    """z_t and the true target give x, by the formula of each prediction type."""
    x, eps, lam = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([-3.0, 1.0])
    alpha, sigma = (w.view(-1, 1, 1, 1) for w in family.schedule.alpha_sigma(lam))
    z, target = family.schedule.add_noise(x, eps, lam), family.target(x, eps, lam)
    back = (z - sigma * target) / alpha if family.part == "unet" else z - sigma * target
    assert torch.allclose(back, x, atol=1e-4)


def test_target_of_v_prediction_recovers_x(tmp_path):
    from tiny import sd15_folder

    family = load(str(sd15_folder(tmp_path / "v", prediction_type="v_prediction")), device="cpu")
    x, eps, lam = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([-3.0, 1.0])
    alpha, sigma = (w.view(-1, 1, 1, 1) for w in family.schedule.alpha_sigma(lam))
    assert torch.allclose(
        alpha * family.schedule.add_noise(x, eps, lam) - sigma * family.target(x, eps, lam), x, atol=1e-5
    )
    with pytest.raises(UserError, match="predicts 'sample'"):
        load(str(sd15_folder(tmp_path / "x", prediction_type="sample")), device="cpu").target(x, eps, lam)


def test_load_with_bf16_keeps_vae_in_float32(tiny_base):
    family = load(str(tiny_base), device="cpu", precision="bf16")
    assert next(family.denoiser.parameters()).dtype == torch.bfloat16
    z, cond = torch.randn(1, 4, 4, 4), family.encode_prompt(["a cat"])
    assert family.predict(z, torch.tensor([-2.0]), cond).isfinite().all()
    assert family.encode_image(torch.zeros(1, 3, 16, 16)).dtype == torch.float32


def test_place_unknown_device_raises(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("cuda:1", "fp32") == ("cuda:1", "fp32") and resolve_device("cpu", "auto") == ("cpu", "fp32")
    assert resolve_device("cuda", "auto")[1] == resolve_device("cuda:1", "auto")[1] == "bf16"
    for device in ("cpu:x", "cuda:", "cuda:-1", "cuda:1:1", "mps:x"):
        with pytest.raises(UserError, match=f"unknown device '{device}': a number must follow the colon"):
            resolve_device(device, "auto")
    for device in ("mps", "mps:0", "cuda:2"):
        with pytest.raises(UserError, match=f"no device '{device}' here"):
            resolve_device(device, "auto")


def test_encode_image_of_wrong_size_raises(family):
    assert family.unit == {"unet": 4, "transformer": 8}[family.part]
    with pytest.raises(UserError, match=f"multiple of {family.unit}"):
        family.encode_image(torch.zeros(1, 3, 18, 16))


def test_predict_treats_items_independently(family):
    """A batch of two levels equals two single calls; height and width are not interchangeable."""
    z, lam, cond = torch.randn(2, 4, 4, 8), torch.tensor([-3.0, 2.0]), family.encode_prompt(["a cat", "a star"])
    with torch.no_grad():
        both = family.predict(z, lam, cond)
        one = [family.predict(z[i : i + 1], lam[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()}) for i in (0, 1)]
        other = family.predict(z.transpose(2, 3).contiguous(), lam, cond).transpose(2, 3)
    assert both.shape == z.shape and torch.allclose(both, torch.cat(one), atol=1e-5)
    assert not torch.allclose(both, other, atol=1e-3)


def test_sdxl_encodes_empty_prompt_as_zeros_and_uses_size_ids(tiny_sdxl, monkeypatch):
    family = load(str(tiny_sdxl), device="cpu")
    cond = family.encode_prompt(["", "a cat"])
    assert (
        not cond["text"][0].any() and not cond["pooled"][0].any() and cond["text"][1].any() and cond["pooled"][1].any()
    )
    calls = record_calls(family.denoiser, monkeypatch)
    sizes = torch.tensor([[640.0, 480.0, 8.0, 4.0, 16.0, 16.0]]).repeat(2, 1)
    for given in (cond, cond | {"size_ids": sizes}):
        with torch.no_grad():
            family.predict(torch.zeros(2, 4, 4, 8), torch.tensor([-2.0, -1.0]), given)
    assert calls[0][0]["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]] * 2
    assert torch.equal(calls[1][0]["time_ids"], sizes)


def test_flux_pack_and_positions_match_pipeline():
    from diffusers import FluxPipeline

    from impasto.families.flux import pack, positions, unpack

    z = torch.randn(2, 3, 4, 6)
    assert torch.equal(pack(z), FluxPipeline._pack_latents(z, 2, 3, 4, 6))
    assert torch.equal(positions(2, 3), FluxPipeline._prepare_latent_image_ids(2, 2, 3, "cpu", torch.float32))
    assert torch.equal(unpack(pack(z), 4, 6), z)


def test_sampling_setting_without_effect_warns(tiny_flux, tiny_schnell):
    with pytest.warns(UserWarning, match="not guided by a negative prompt"):
        Sampling(negative="a cat").on(load(str(tiny_flux), device="cpu"))
    with pytest.warns(UserWarning, match="takes no guidance"):
        Sampling(guidance=3.0).on(load(str(tiny_schnell), device="cpu"))


def test_schedule_without_betas_raises(tmp_path):
    import json

    from tiny import sd15_folder

    folder = sd15_folder(tmp_path / "edm")
    config = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="only schedules of betas"):
        _ = load(str(folder), device="cpu").schedule


def rename_to_variant(folder, parts="*"):
    """Rename the weights of components as `save_pretrained(variant="fp16")` does."""
    for weights in folder.glob(f"{parts}/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    return folder


@pytest.mark.parametrize("half", ["all", "sharded", "denoiser", "text_encoder"])
def test_load_half_precision_only_weights(tiny_base, family, pipe, tmp_path, half):
    """All components or one of them; a variant beside plain weights is not read, a pickled one ignored."""
    if half == "sharded":
        pipe.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="10KB")
        shutil.copy(tiny_base / "impasto.json", tmp_path / "half")
        assert list((tmp_path / "half" / family.part).glob("*.fp16-00001-of-*.safetensors"))
    else:
        shutil.copytree(tiny_base, tmp_path / "half")
        rename_to_variant(tmp_path / "half", {"all": "*", "denoiser": family.part}.get(half, half))
    if half in ("denoiser", "text_encoder"):
        (tmp_path / "half" / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
        (tmp_path / "half" / "text_encoder" / "pytorch_model.fp16.bin").write_bytes(b"a pickle")
        (tmp_path / "half" / "vae" / "LICENSE").write_bytes(b"")
    other = load(str(tmp_path / "half"), device="cpu")
    ours, theirs = other.pipeline(), family.pipeline()
    for part in (family.part, "vae", *(name for name in family.encoder_parts if name.startswith("text"))):
        found, expected = (getattr(p, part) for p in (ours, theirs))
        assert type(found) is type(expected) and found.dtype == expected.dtype and not found.training
        assert all(torch.equal(v, found.state_dict()[k]) for k, v in expected.state_dict().items()), part
    assert all(torch.equal(v, other.denoiser.state_dict()[k]) for k, v in family.denoiser.state_dict().items())
    assert all(torch.equal(v, other.vae.state_dict()[k]) for k, v in family.vae.state_dict().items())
    cond = other.encode_prompt([PROMPT])
    assert all(torch.allclose(v, cond[k], atol=1e-5) for k, v in family.encode_prompt([PROMPT]).items())
    assert other.clip.vae is None and not isinstance(other.encoders.vae, torch.nn.Module)
