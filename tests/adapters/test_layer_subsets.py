"""Plain diffusers loads what is written, whichever layers a LoRA has; reported files that it did not load."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import sd15_folder, unet

from impasto import load_style
from impasto.errors import UserError
from impasto.interop.lora.layouts import DENOISER, TEXT_ENCODERS, names, text_names
from impasto.interop.lora.read import read
from impasto.interop.lora.write import Adapter, Lora, write
from impasto.styles.convert import import_style, merge_styles
from impasto.styles.weights import WEIGHTS, write_tensors

REPORTED = Path(__file__).parents[1] / "data" / "reported" / "loras"
SUBSETS = {
    "text-mlp": r"text_encoder.*mlp",
    "text-one-layer": r"text_encoder\.text_model\.encoder\.layers\.1\.mlp\.fc2",
    "text-queries": r"text_encoder.*q_proj",
    "text-projection": r"text_encoder.*text_projection",
    "text-mlp-of-one-tower": r"text_encoder\..*(q_proj|mlp)|text_encoder_2.*mlp",
    "both-text-mlp": r"(transformer|unet).*to_q|text_encoder.*mlp",
    "both-projection": r"(transformer|unet).*to_k|text_encoder.*text_projection",
    "all": "",
}


def layers_of(pipe, kind):
    """{name as in a file: (component, name in the model, module)} of all layers that can carry a LoRA."""
    found = {}
    for component in (DENOISER[kind], *TEXT_ENCODERS[kind]):
        for name, module in getattr(pipe, component).named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                flat, known = name.replace(".", "_"), text_names()
                text = known.get(flat) or known.get(f"text_model_{flat}")
                full = name if component == DENOISER[kind] else text
                if full and (component != DENOISER[kind] or full in names(kind, 1).place):
                    found[f"{component}.{full}"] = (component, name, tuple(module.weight.shape))
    return found


def random_lora(shape, rank):
    """Of a layer with a weight of that shape, at a strength of 1.5."""
    rows, *columns = shape
    return Lora(torch.randn(rank, *columns), torch.randn(rows, rank, *(1 for _ in columns[1:])), 1.5 * rank)


def update(down, up, scale):
    return scale * up.flatten(1) @ down.flatten(1)


def misloaded(pipe, layers, loras, load):
    """Names of layers whose update is not that of their LoRA after `load`."""
    load()
    wrong = []
    for layer, lora in loras.items():
        component, name, _ = layers[layer]
        module = getattr(pipe, component).get_submodule(name)
        adapter = next(iter(getattr(module, "lora_A", {})), None)
        if adapter is None:
            wrong.append(layer)
            continue
        loaded = update(module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter])
        if not torch.allclose(loaded, update(lora.down, lora.up, lora.scale), atol=1e-4):
            wrong.append(layer)
    pipe.unload_lora_weights()
    return wrong


@pytest.fixture(scope="module", params=["flux", "sd3", "sdxl", "sd15"])
def base(request):
    kind = request.param
    pipe = DiffusionPipeline.from_pretrained(request.getfixturevalue(f"tiny_{kind}"))
    return kind, pipe, layers_of(pipe, kind)


@pytest.mark.parametrize("subset", SUBSETS)
def test_import_style_subset_of_layers_loads_in_diffusers(base, subset, tmp_path):
    kind, pipe, layers = base
    chosen = [layer for layer in layers if re.match(SUBSETS[subset], layer)]
    if not chosen:
        pytest.skip(f"{kind} has no such layer")
    loras = {layer: random_lora(layers[layer][2], 2 + i % 2) for i, layer in enumerate(chosen)}
    tensors, _ = write(Adapter(kind, loras), "kohya", layers_per_block=1)
    save_file(tensors, tmp_path / "theirs.safetensors")
    import_style(
        tmp_path / "theirs.safetensors", tmp_path / "ours", architecture=kind, base=str(pipe.config._name_or_path)
    )
    assert not misloaded(pipe, layers, loras, lambda: pipe.load_lora_weights(tmp_path / "ours"))
    assert not misloaded(pipe, layers, loras, lambda: load_style(pipe, tmp_path / "ours"))


def test_write_every_layer_alone_loads_in_diffusers(base, tmp_path):
    kind, pipe, layers = base
    alone = {re.sub(r"\d+", "N", layer): layer for layer in layers}
    assert len(alone) > 15
    for layer in alone.values():
        loras = {layer: random_lora(layers[layer][2], 2)}
        write_tensors(tmp_path / WEIGHTS, *write(Adapter(kind, loras), "diffusers"))
        assert not misloaded(pipe, layers, loras, lambda: pipe.load_lora_weights(tmp_path))


@pytest.fixture(scope="module")
def tiny_sd2(tmp_path_factory):
    """SD2: SD1.5's layers, proj_in and proj_out matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny.unet", lambda: unet(use_linear_projection=True))
        return sd15_folder(tmp_path_factory.mktemp("tiny") / "sd2")


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("L12_conv_on_linear_sdxl", "sdxl"),
        ("L12d_kohya_sd2", "sd2"),
        ("L4b_sd3_te_text_projection", "sd3"),
        ("L4e_te_mlp_only_sdxl", "sdxl"),
        ("L4g_projection_only_sdxl", "sdxl"),
        ("L1_attnprocs_unprefixed", "sd15"),
        ("L1b_save_lora_adapter_sd15", "sd15"),
        ("L1d_bfl_unprefixed", "flux"),
        ("L2_xlabs", "flux"),
        ("L2b_xlabs_single", "flux"),
        ("L13_peft_both", "sd15"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*says no alpha")
@pytest.mark.parametrize("known", [True, False], ids=["base", "without-base"])
def test_import_style_of_reported_file_loads_in_diffusers(file, kind, known, request, tmp_path):
    folder = request.getfixturevalue(f"tiny_{kind}")
    result = import_style(REPORTED / f"{file}.safetensors", tmp_path / "ours", base=str(folder) if known else None)
    assert result["checked"] is known
    for load in (
        lambda pipe: pipe.load_lora_weights(tmp_path / "ours"),
        lambda pipe: load_style(pipe, tmp_path / "ours"),
    ):
        pipe = DiffusionPipeline.from_pretrained(folder)
        load(pipe)
        assert (
            sum(bool(getattr(m, "lora_A", {})) for c in pipe.get_list_adapters() for m in getattr(pipe, c).modules())
            == (result["layers"])
        )


def read_reported(name, **options):
    return read(load_file(REPORTED / f"{name}.safetensors"), **options)


def test_read_names_without_component_are_the_denoiser():
    layers = read_reported("L1b_save_lora_adapter_sd15").layers
    tensors = load_file(REPORTED / "L1b_save_lora_adapter_sd15.safetensors")
    assert all(
        torch.equal(lora.up, tensors[f"{name.removeprefix('unet.')}.lora_B.weight"]) for name, lora in layers.items()
    )
    old = read_reported("L1_attnprocs_unprefixed").layers
    assert old.keys() == layers.keys() and all(name.startswith("unet.down_blocks.0.") for name in old)


def test_read_xlabs_is_what_diffusers_reads():
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers

    for name in ("L2_xlabs", "L2b_xlabs_single"):
        layers = read_reported(name).layers
        theirs = _convert_xlabs_flux_lora_to_diffusers(load_file(REPORTED / f"{name}.safetensors"))
        assert {f"{layer}.lora_A.weight" for layer in layers} == {key for key in theirs if "lora_A" in key}
        for layer, lora in layers.items():
            update = theirs[f"{layer}.lora_B.weight"] @ theirs[f"{layer}.lora_A.weight"]
            assert torch.allclose(lora.scale * lora.up @ lora.down, update, atol=1e-6)


def test_read_trailing_underscores_are_not_part_of_the_name():
    layers = read_reported("L5_trailing_underscore_flux", architecture="flux").layers
    block = "transformer.transformer_blocks.0.attn"
    assert sorted(layers) == [f"{block}.{name}" for name in ("to_k", "to_out.0", "to_q")]


def test_read_peft_text_encoder_is_read_along():
    parts = [layer.split(".")[0] for layer in read_reported("L13_peft_both").layers]
    assert parts.count("unet") == 2 and parts.count("text_encoder") == 3


@pytest.mark.parametrize("name", ["L3_onetrainer_bundle_emb", "L3b_a1111_bundle_emb"])
def test_read_bundled_embedding_is_named_and_can_be_left_out(name, tmp_path):
    file = REPORTED / f"{name}.safetensors"
    with pytest.raises(UserError, match=r"embedding is bundled with the LoRA \(bundle_emb\.wibble\..*: --lora-only"):
        import_style(file, tmp_path / "ours")
    assert import_style(file, tmp_path / "ours", lora_only=True)["layers"] == 2


@pytest.mark.parametrize("name", ["TI", "TI_sdxl"])
def test_read_embedding_alone_is_named(name):
    with pytest.raises(UserError, match=r"is a textual-inversion embedding .*not a LoRA"):
        read_reported(name)


@pytest.mark.parametrize("name", ["L15_diffusers_with_alpha_sd3", "L1b_save_lora_adapter_sd15", "L14_kohya_dots_flux"])
def test_load_style_other_layout_is_the_stated_reason(name, tiny_sd3, recwarn):
    """Not the base; and no notice of a library that asking for its layers gives."""
    pipe = DiffusionPipeline.from_pretrained(tiny_sd3)
    recwarn.clear()
    with pytest.raises(UserError, match=r"is in another tool's layout: .impasto import .*reads it, or states why not"):
        load_style(pipe, REPORTED / f"{name}.safetensors")
    assert not recwarn.list


PROJECTION = "unet.down_blocks.0.attentions.0.proj_in"


def projection_file(folder, kernel):
    """A style of an SD1 or SD2 U-Net with a LoRA on one projection alone, in the form given."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    lora = Lora(torch.randn(2, 8, generator=generator), torch.randn(8, 2, generator=generator), 2.0)
    write_tensors(folder / WEIGHTS, *write(Adapter("sd15", {PROJECTION: lora.with_kernel(kernel)}), "diffusers"))
    return folder


@pytest.mark.parametrize(("kind", "other"), [("sd15", ()), ("sd2", (1, 1))])
def test_load_style_converts_1x1_convolution_and_matrix(kind, other, request, tmp_path):
    """In the pipeline, and in a merge where the base is known; the update is the same to the bit."""
    folder, right = request.getfixturevalue(f"tiny_{kind}"), (1, 1) if kind == "sd15" else ()
    files = [projection_file(tmp_path / "own", right), projection_file(tmp_path / "other", other)]
    updates = []
    for file in files:
        pipe = DiffusionPipeline.from_pretrained(folder)
        load_style(pipe, file)
        layer = pipe.unet.get_submodule(PROJECTION.removeprefix("unet."))
        updates.append(layer.get_delta_weight("style0"))
    assert torch.equal(*updates)
    with pytest.raises(UserError, match="is a matrix in one style and a 1x1 convolution in another: give --base"):
        merge_styles([f"{file}:1" for file in files], tmp_path / "unknown")
    merge_styles([f"{file}:1" for file in files], tmp_path / "sum", base=str(folder))
    DiffusionPipeline.from_pretrained(folder).load_lora_weights(tmp_path / "sum")


def test_load_style_other_kernel_raises(tiny_sd15, tmp_path):
    """The widths are those of the layer, the kernel is not."""
    lora = Lora(torch.ones(2, 8, 3, 3), torch.ones(8, 2, 1, 1), 2.0)
    write_tensors(tmp_path / WEIGHTS, *write(Adapter("sd15", {PROJECTION: lora}), "diffusers"))
    with pytest.raises(UserError, match=r"1 of 2 tensors do not fit, .unet.*proj_in.lora_A"):
        load_style(DiffusionPipeline.from_pretrained(tiny_sd15), tmp_path)
    query = PROJECTION.replace("proj_in", "transformer_blocks.0.attn1.to_q")
    save_file({f"{query}.lora_A.weight": lora.down, f"{query}.lora_B.weight": lora.up}, tmp_path / "q.safetensors")
    with pytest.raises(UserError, match=r"its kernel is \(3, 3\), that of sd15 is \(\)"):
        import_style(tmp_path / "q.safetensors", tmp_path / "ours")


def test_load_style_failure_of_diffusers_is_one_line_with_the_file(tiny_sd15, tmp_path, monkeypatch):
    """An adapter that was on stays on."""
    good = projection_file(tmp_path / "good", (1, 1))
    pipe = DiffusionPipeline.from_pretrained(tiny_sd15)
    load_style(pipe, good, 0.5)

    def fail(*_, **__):
        raise RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch")

    monkeypatch.setattr(pipe, "load_lora_weights", fail)
    with pytest.raises(UserError) as error:
        load_style(pipe, good)
    assert "good" in str(error.value) and "diffusers cannot load it: Error(s)" in str(error.value)
    assert "\n" not in str(error.value) and pipe.get_active_adapters() == ["style0"]
