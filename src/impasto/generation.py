"""Generating: prompts and seeds -> pictures, by the base's ordinary diffusers pipeline, with or without styles.

Picture i starts from `torch.Generator("cpu").manual_seed(seed + i)`, so that plain diffusers repeats it, whatever the
batch; the number and every other setting are in the PNG.
"""

import shlex
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.adapters.token import Token, check_prompt
from impasto.bases import loader
from impasto.coerce import check_seed, check_share
from impasto.contact_sheet import sheet
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.families.base import Family, check_size
from impasto.files import atomic, writable_folder
from impasto.guidance import bind_all, style_guidance
from impasto.guidance.base import Encode, Guidance
from impasto.guidance.composed import ComposedPrompts
from impasto.guidance.two_adapters import CONTENT
from impasto.inversion import log_snr_of
from impasto.inversion.noise_file import InversionNoise
from impasto.progress import Progress, ignore, part
from impasto.sampling.config import GenerateConfig, parse_size, with_seed
from impasto.sampling.output import check_targets, clear_leftovers, next_number
from impasto.sampling.png import Info, save_png
from impasto.sampling.prompts import check_prompts, read_pasted, read_prompts
from impasto.sampling.sample import Sampling, encoder, place_tokens, sample
from impasto.styles import defaults as style_defaults
from impasto.styles.hub_download import hub_name, resolve_hub
from impasto.styles.load import load_inactive, load_weights, replaces_base, set_strength
from impasto.styles.metadata import quantized_base, read_about
from impasto.styles.start import RANDOM, build_start, read_noises, reference_file, share_weights
from impasto.styles.weights import split_strength, style_hash


def generate(
    base: str,
    prompts: Sequence[str],
    *,
    styles: Sequence[str] = (),
    seed: int = 0,
    count: int = 1,
    sampling: Sampling | None = None,
    guidances: Sequence[Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
    components: Path | None = None,
    quantize: str = "none",
    noise_random: float | None = None,
    alpha: Sequence[float] = (),
    beta: Sequence[float] = (),
    progress: Progress = ignore,
) -> Iterator[tuple[Image.Image, Info]]:
    """Generate images with or without styles.

    Strength, sampler, style guidance, negative prompt and guidances that are not given are the style's own defaults
    (`styles.defaults`); with a guidance of fixed rows (StyleAligned) those of plain diffusers.

    Args:
        base: A base model, as `--base` takes it.
        prompts: One text per image, or per `count` images.
        styles: Style folders, files or names on the Hub, each with an optional strength: "runs/neon:0.8".
        seed: Image i has the seed `seed + i`.
        count: Images per prompt.
        sampling: Steps, guidance scale, size ...; the base's and the style's own when not given.
        guidances: Settings of `guidance.GUIDANCES`, such as `PromptSwitch("{prompt} in ink style", -4.0)`; () for none.
        device: "cpu", "cuda", "mps" or "auto".
        precision: "fp32", "bf16" or "auto" (bf16 on CUDA).
        components: A diffusers folder for what a single-file base does not hold.
        quantize: The base in fewer bits: "none", "nf4", "int8" or "fp8".
        noise_random: Of a style that keeps inversion noise: share of it that is drawn anew from the image's seed.
        alpha: Of such a style of several: shares of their noises, see `styles.start`.
        beta: Weights of the prompts of a style of several tokens, see `guidance.composed`.
        progress: Called as work goes on, see `impasto.progress`.

    Returns:
        Images in order, each with its Info (what the PNG's metadata states), generated when they are asked for.

    Raises:
        UserError: On bad input, before this returns.
    """
    check_seed(seed)
    check_prompts(prompts)
    session = open_session(
        base,
        styles=styles,
        sampling=sampling,
        guidances=guidances,
        device=device,
        precision=precision,
        components=components,
        quantize=quantize,
        mixing=Mixing(noise_random, tuple(alpha), tuple(beta)),
        progress=progress,
    )
    session.check_prompts(prompts)
    jobs = [(prompt, seed + i) for i, prompt in enumerate(p for p in prompts for _ in range(count))]
    return session.sample(jobs, progress=progress)


@dataclass(frozen=True)
class Mixing:
    """Settings of a style that keeps inversion noise. random: share of its positions drawn anew from the image's seed,
    `styles.start.RANDOM` where it is None. Of a style of several, see `styles.start.share_weights`: alpha, their shares
    of the noise; beta, their weights in the prompt."""

    random: float | None = None
    alpha: tuple[float, ...] = ()
    beta: tuple[float, ...] = ()

    def check(self, noisy: Sequence[tuple[Path, Sequence[Any]]]) -> None:
        """Raise UserError where they are given without such a style, for two such styles, and for shares that are none.

        noisy: (folder, inversion noises) of the styles that have some.
        """
        if len(noisy) > 1:
            names = " and ".join(repr(str(path)) for path, _ in noisy)
            raise UserError(f"{names} both start from their own noise: `impasto mix` makes one style of them")
        given = {"noise-random": self.random is not None, "alpha": bool(self.alpha), "beta": bool(self.beta)}
        n = len(noisy[0][1]) if noisy else 0
        for name, there in given.items():
            if there and not n:
                raise UserError(f"--{name} is for a style that keeps inversion noise (recipe instastyle): leave it out")
            if there and name != "noise-random" and n < 2:
                raise UserError(f"--{name} is for a style of several, as `impasto mix` makes it: leave it out")
        check_share(self.random or 0.0, "noise-random")
        for name, share in (("alpha", self.alpha), ("beta", self.beta)):
            share_weights(share, max(n, 1), name) if share else None


@dataclass(frozen=True)
class Session:
    """A base with styles, loaded and ready to generate. about: what the Info of its images states of both. tokens: the
    styles' learned ones; folder, noises: of the style that keeps inversion noise. settings: those of `guidances`."""

    family: Family
    pipe: Any
    sampling: Sampling
    encode: Encode
    guidances: tuple[Guidance, ...]
    about: Info
    tokens: tuple[Token, ...]
    folder: Path | None
    noises: tuple[InversionNoise, ...]
    mixing: Mixing
    settings: tuple[Any, ...] = ()

    def at(self, strength: float) -> "Session":
        """The same pipeline with its style at another strength, which holds for this session too from then on. Not for
        a style that replaces the base's weights, see `StrengthSessions`."""
        set_strength(self.pipe, strength, but=(CONTENT,))
        about = self.about | {"styles": [{**style, "strength": strength} for style in self.about["styles"]]}
        return replace(self, about=about).with_guidances(self.settings)

    def with_guidances(self, settings: Sequence[Any]) -> "Session":
        """With these guidances in place of its own. Prompts are encoded anew: a style may change the text encoder."""
        assert self.sampling.batch is not None
        encode = encoder(self.family, self.pipe, self.sampling.batch, self.tokens)
        bound = bind_all(settings, self.family, self.sampling, encode)
        return replace(self, encode=encode, guidances=tuple(bound), settings=tuple(settings))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise UserError where a prompt is too long with its tokens written out."""
        for prompt in prompts:
            check_prompt(self.family, self.tokens, place_tokens(prompt, self.tokens), self.pipe)

    def sample(
        self, jobs: Sequence[tuple[str, int]], mixing: Mixing | None = None, progress: Progress = ignore
    ) -> Iterator[tuple[Image.Image, Info]]:
        """Images of (prompt, seed), in order. mixing: instead of the session's."""
        mixing, about, guidances, start = mixing or self.mixing, dict(self.about), list(self.guidances), None
        if len(self.tokens) > 1:
            weights = share_weights(mixing.beta, len(self.tokens), "beta")
            guidances.append(ComposedPrompts(lambda prompt: variants(prompt, self.tokens), weights))
        if self.folder is not None:
            random = RANDOM if mixing.random is None else mixing.random
            start = build_start(self.folder, self.noises, self.family, self.encode, self.sampling, random, mixing.alpha)
            about["noise_random"] = random
            if len(self.noises) > 1:
                about["noise_weights"] = share_weights(mixing.alpha, len(self.noises), "alpha")
        return sample(
            *(self.family, self.pipe, jobs, self.encode, self.sampling, about, guidances),
            start=start,
            progress=progress,
        )


def open_session(
    base: str,
    *,
    styles: Sequence[str] = (),
    sampling: Sampling | None = None,
    guidances: Sequence[Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
    components: Path | None = None,
    quantize: str = "none",
    mixing: Mixing | None = None,
    progress: Progress = ignore,
) -> Session:
    """Load a base with styles; see `generate`. Raises UserError."""
    chosen = [split_strength(resolve_hub(style)) for style in styles]
    on_hub = {
        path: name[0].removesuffix(name["strength"] or "")
        for style, (path, _) in zip(styles, chosen, strict=True)
        if (name := hub_name(style))
    }
    abouts = [read_about(path) for path, _ in chosen]  # a damaged file is found before the base is loaded
    progress(f"loading {base}")
    family = loader.load(base, device=device, precision=precision, components=components)
    sampling = sampling or Sampling()
    fixed = any(getattr(one, "fixed_rows", False) for one in guidances or ())
    if fixed and (sampling.style_guidance or sampling.base_guidance):
        raise UserError("style-guidance and aligned-to do not go together: leave out one of them")
    styled, sampling, guidances = style_defaults.apply(chosen, abouts, sampling, guidances, family, plain=fixed)
    if fixed and style_defaults.replaces_weights(guidances):
        raise UserError("aligned-to and the guidance style-semantics do not go together: leave out one of them")
    noisy = [(path, noises) for path, _ in styled if (noises := read_noises(path))]
    mixing = mixing or Mixing()
    mixing.check(noisy)
    for _, noises in noisy:
        for noise in noises:
            noise.check_base(family.hash)
    sampling = sampling.on(family)
    check_until(sampling, noisy, family)
    check_size(sampling.size, family)  # before anything is loaded
    check_size(sampling.height, family, "height")
    running.check_quantized(quantize, family.device)
    with running.in_main_memory(family):
        shared = quantize != "none" or any(getattr(one, "calls_denoiser", False) for one in guidances) or noisy
        parts = {family.part: family.denoiser} if shared else {}
        for denoiser in parts.values():
            running.quantize(denoiser, quantize, family.dtype)
        pipe = family.pipeline(**parts)
    tokens = []
    for (path, strength), kind in zip(styled, map(quantized_base, abouts), strict=True):
        tokens += load_weights(pipe, path, strength)
        if kind and kind != quantize:
            here = family.precision if quantize == "none" else quantize
            warnings.warn(
                f"style {str(path)!r} was trained on the base in {kind} and is drawn here on the base in {here}: "
                f"pictures may differ from its previews; --quantize {kind} draws on the same, and a strength below 1 "
                f"may help, --style {path}:0.8",
                stacklevel=2,
            )
    content = load_content(pipe, guidances, styled)
    compared = any(getattr(one, "compares_with_base", False) for one in guidances)
    if sampling.style_guidance or sampling.base_guidance or compared:
        style_guidance.check_switchable(getattr(pipe, family.part))
    assert sampling.batch is not None and sampling.size is not None and sampling.height is not None
    running.place_pipeline(pipe, family, sampling.batch * sampling.size * sampling.height)
    about = {
        "base": base,
        "base_hash": family.hash,
        **({} if quantize == "none" else {"quantize": quantize}),
        "styles": [{"path": on_hub.get(p, str(p)), "strength": s, "hash": style_hash(p)} for p, s in styled],
        **(sampling.weights(family).info if styled else {}),
        **content,
    }
    encode = encoder(family, pipe, sampling.batch, tokens)
    folder, noises = noisy[0] if noisy else (None, [])
    session = Session(family, pipe, sampling, encode, (), about, tuple(tokens), folder, tuple(noises), mixing)
    return session.with_guidances(guidances)


class StrengthSessions:
    """Sessions of one style at several strengths, or of a base alone, of one loaded base.

    base, more: as in `open_session`. style: a folder or file, None for the base alone.
    """

    def __init__(self, base: str, style: Path | str | None = None, **more: Any) -> None:
        self.base, self.style, self.more = base, style, more
        self.session: Session | None = None

    def at(self, strength: float = 1.0) -> Session:
        """The session at a strength; an earlier one is not to be used any more. A style that replaces the base's
        weights is loaded anew. Raises UserError."""
        if self.session is not None and self.style is None:
            return self.session
        if self.session is not None and self.style is not None and not replaces_base(Path(self.style)):
            self.session = self.session.at(strength)
            return self.session
        self.session = None  # before the base is loaded again
        styles = () if self.style is None else (f"{self.style}:{strength}",)
        self.session = open_session(self.base, styles=styles, **self.more)
        return self.session


def load_content(pipe: Any, guidances: Sequence[Any], styled: Sequence[Any]) -> Info:
    """Load the content's adapter of `guidance.two_adapters`; what the Info of the images states of it."""
    content = next((name for one in guidances if (name := getattr(one, "content", None))), None)
    if content is None:
        return {}
    if not styled:
        raise UserError("--content goes beside a --style: name the adapter with --style where it is the only one")
    path, strength = split_strength(content)
    strength = 1.0 if strength is None else strength
    load_inactive(pipe, path, strength, CONTENT)
    return {"content": {"path": str(path), "strength": strength, "hash": style_hash(path)}}


def check_until(sampling: Sampling, noisy: Sequence[Any], family: Family) -> None:
    """Raise UserError for a terminal timestep without inversion noise, or one that the base does not have."""
    if sampling.until is not None and not noisy:
        raise UserError("--until is for a style that keeps inversion noise (recipe instastyle): leave it out")
    if sampling.until is not None:
        log_snr_of(family, sampling.until)


GRID, LINE = (0.1, 0.3, 0.5, 0.7, 0.9), (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Shares of InstaStyle's figures 7 (alpha x beta) and 14 (alpha = beta)."""


def mixing_sheets(config: GenerateConfig, grid: bool, line: bool, progress: Progress = ignore) -> dict[str, Any]:
    """Write contact sheets of a style of two to `config.out`: grid.png, a row per alpha and a column per beta, and
    line.png, alpha = beta; grid-1.png and so on for further prompts. One image a cell, all from `config.seed`.

    Raises UserError for a style that is not of two.
    """
    prompts = read_prompts(config)
    check_prompts(prompts)
    if config.alpha or config.beta:
        raise UserError("--grid and --line have their own --alpha and --beta: leave these out")
    writable_folder(config.out)
    session = open_session(
        config.base, styles=config.style, sampling=sampling_of(config), progress=progress, **hardware_of(config)
    )
    session.check_prompts(prompts)
    if len(session.noises) != 2:
        raise UserError("--grid and --line are for a style of two, as `impasto mix` makes it")
    cells = [(a, b) for a in GRID for b in GRID] * grid + [(a, a) for a in LINE] * line
    made: list[str] = []
    count = len(prompts) * len(set(cells))
    for n, prompt in enumerate(prompts):
        images = {}
        for a, b in dict.fromkeys(cells):
            mixing = Mixing(config.noise_random, (a,), (b,))
            own = part(progress, n * len(set(cells)) + len(images), count)
            images[a, b] = next(session.sample([(prompt, config.seed)], mixing, own))[0]
        rows = {f"alpha {a:g}": [images[a, b] for b in GRID] for a in GRID} if grid else {}
        columns = [f"beta {b:g}" for b in GRID]
        sheets = {"grid": sheet(rows, columns, title=prompt)} if grid else {}
        if line:
            row = {"alpha = beta": [images[a, a] for a in LINE]}
            sheets["line"] = sheet(row, [f"{a:g}" for a in LINE], title=prompt)
        for name, picture in sheets.items():
            made.append(f"{name}{f'-{n}' if n else ''}.png")
            with atomic(config.out / made[-1]) as file:
                picture.save(file, "PNG")
    return {"out": str(config.out), "sheets": made, "style": list(config.style), "seed": config.seed}


SWEEP = (321.0, 481.0, 561.0, 641.0, 721.0, 801.0, 981.0)
"""Terminal timesteps of a sweep, of 50 DDIM steps."""


def timestep_sheet(config: GenerateConfig, progress: Progress = ignore) -> dict[str, Any]:
    """Write sweep.png to `config.out`: a row per terminal timestep of SWEEP, a column per prompt; the style's reference
    is inverted to each. The noise has no random share unless `config.noise_random` is given.

    Raises UserError for a style that does not keep the noise of one reference.
    """
    prompts = read_prompts(config)
    check_prompts(prompts)
    if config.until is not None:
        raise UserError("--sweep has its own --until: leave it out")
    writable_folder(config.out)
    session = open_session(
        config.base, styles=config.style, sampling=sampling_of(config), progress=progress, **hardware_of(config)
    )
    session.check_prompts(prompts)
    if len(session.noises) != 1 or session.folder is None:
        raise UserError("--sweep is for a style that keeps the inversion noise of one reference (recipe instastyle)")
    rows = {}
    for until in SWEEP:
        own = replace(session, sampling=replace(session.sampling, until=until))
        jobs = [(prompt, config.seed) for prompt in prompts]
        images = own.sample(jobs, Mixing(config.noise_random or 0.0), part(progress, len(rows), len(SWEEP)))
        rows[f"t = {until:g}"] = [image for image, _ in images]
    columns = [prompt.partition(",")[0] for prompt in prompts]
    with Image.open(reference_file(session.folder)) as opened, atomic(config.out / "sweep.png") as file:
        reference = opened.convert("RGB")
        sheet(rows, columns, title="terminal timestep of the inversion", reference=reference).save(file, "PNG")
    return {"out": str(config.out), "sheets": ["sweep.png"], "style": list(config.style), "seed": config.seed}


def sampling_of(config: GenerateConfig) -> Sampling:
    """The command's settings of sampling."""
    width, height = parse_size(config.size)
    return Sampling(
        config.steps,
        config.guidance,
        config.negative,
        width,
        config.batch,
        config.style_guidance,
        config.base_guidance,
        config.sampler,
        config.until,
        config.temperature,
        height,
        config.token_temperature,
    )


def hardware_of(config: GenerateConfig) -> dict[str, Any]:
    """The command's device, precision, components and quantisation."""
    names = ("device", "precision", "components", "quantize")
    return {name: getattr(config, name) for name in names}


def generate_command(base: str, style: str, prompt: str, out: str | None = None) -> str:
    """The command that generates one image with a style, as a shell reads it."""
    command = ["impasto", "generate", "--base", base, "--style", style, "--prompt", prompt]
    return shlex.join([*command, *(["--out", out] if out else [])])


def variants(prompt: str, tokens: Sequence[Token]) -> list[str]:
    """The prompt once for each token, in place of any token that it names."""
    prompt = place_tokens(prompt, tokens)
    found = []
    for token in tokens:
        variant = prompt
        for other in tokens:
            variant = variant.replace(other.name, token.name)
        found.append(variant)
    return found


def generate_folder(config: GenerateConfig, progress: Progress = ignore) -> dict[str, Any]:
    """Write `0000.png` on to `config.out`, in the order of the prompts, numbered behind the images that are there; with
    `config.replace` those of an earlier command are removed instead (`clear_leftovers`). Returns what was written, and
    what was removed.

    progress: see `impasto.progress`. Raises UserError on bad input.
    """
    config = with_seed(read_pasted(config))
    prompts = read_prompts(config)
    if config.count < 1:
        raise UserError(f"count must be at least 1, not {config.count}")
    total = len(prompts) * config.count
    if config.replace:
        check_targets(config.out, total, [one.image for one in config.guidances if getattr(one, "image", None)])
    check_prompts(prompts)
    writable_folder(config.out)
    pictures = generate(
        config.base,
        prompts,
        styles=config.style,
        seed=config.seed,
        count=config.count,
        sampling=sampling_of(config),
        guidances=config.guidances or None,
        **hardware_of(config),
        noise_random=config.noise_random,
        alpha=config.alpha,
        beta=config.beta,
        progress=progress,
    )
    files, used, gone = [], {}, []
    first = 0 if config.replace else next_number(config.out)
    for i, (image, info) in enumerate(pictures):
        if config.replace and not files:
            gone = clear_leftovers(config.out)  # an interrupted command leaves no mixture
        files.append(f"{first + i:04d}.png")
        save_png(image, info, config.out / files[-1])
        used = {key: info[key] for key in USED if key in info}
        used["styles"] = [f"{style['path']}:{style['strength']:g}" for style in info["styles"]]
    if gone := [name for name in gone if name not in files]:
        used["removed"] = gone
    own = {"out": str(config.out), "images": files, "base": config.base, "styles": list(config.style)}
    return own | used | {"seed": config.seed}


USED = (
    *("sampler", "guidance", "style_guidance", "base_guidance", "negative_prompt"),
    *("log_snr", "prompt_of_step", "switch_share", "style_semantics"),
    *("noise_random", "noise_weights", "prompt_weights", "until", "content_share"),
)
"""Of an image's Info: what `generate_folder` reports, the same for all images of a command."""
