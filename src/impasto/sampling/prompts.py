"""Prompts as the Style-Friendly SNR sampler's authors word them (arXiv 2411.14793 v3).

A multi-panel comic is one picture in one style: it is learnt from a single reference whose caption names the layout ("A
humorous sequence featuring a red cartoon character in a multi-panel comic style", figure S6), and asked for as any
other style, "{subject} in {style} style"; the model puts the subject into every panel. Lettering is figure S10's.
"""

import re
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from impasto.data.captions import warn_syntax
from impasto.errors import UserError
from impasto.sampling.config import GenerateConfig
from impasto.sampling.pasted import Pasted, is_settings, read_parameters

TABLES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".parquet", ".xlsx")
OPTION = re.compile(r"(?:^|\s)(--[A-Za-z]\w*)")
FLAGS = {
    "--n": "--negative",
    "--no": "--negative",
    "--w": "--size",
    "--h": "--size",
    "--ar": "--size",
    "--d": "--seed",
    "--seed": "--seed",
    "--l": "--guidance",
    "--g": "--guidance",
    "--s": "--steps",
    "--ss": "--sampler",
}
"""Flags of `generate` in place of options in prompt lines of kohya's sd-scripts and Midjourney."""


def multi_panel(subjects: Sequence[str], style: str = "a multi-panel comic") -> str:
    """ "{subject} in {style} style" for one subject (figure S6's prompts); for several, the wording of the reference's
    caption: "A humorous sequence featuring {a, b and c} in {style} style". UserError where a subject is empty."""
    named = [subject.strip() for subject in subjects]
    if not named or not all(named):
        raise UserError(f"a panel has no subject in {';'.join(subjects)!r}: write them as 'a cat; a dog; a moose'")
    check(style)
    if len(named) == 1:
        return f"{named[0]} in {style} style"
    return f"A humorous sequence featuring {', '.join(named[:-1])} and {named[-1]} in {style} style"


def lines(file: Path, what: str) -> list[str]:
    """The lines of a text file, which hold `what`, without empty ones and comments (#). Raises UserError when it cannot
    be read, or is a table."""
    return [line for _, line in numbered_lines(file, what)]


def numbered_lines(file: Path, what: str) -> list[tuple[int, str]]:
    """`lines` with their numbers."""
    try:
        found = file.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028 and the like, as splitlines() does
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} file {str(file)!r} cannot be read: {error}") from None
    numbered = [(number, line.strip()) for number, line in enumerate(found, 1)]
    kept = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    table = next((number for number, line in kept if re.match(r'[\[{]\s*[\[{"]', line)), None)
    if kept and file.suffix.lower() in TABLES:
        table = kept[0][0]
    if table is not None:
        raise UserError(f"{what} file {str(file)!r}, line {table}: a table is not read: write one a line as plain text")
    return kept


def check_options(prompt: str, where: str) -> None:
    """Raise UserError where a prompt has options of other tools' prompt lines, such as "--w 512"."""
    options = list(dict.fromkeys(OPTION.findall(prompt)))
    if options:
        known = ", ".join(f"{option} is {FLAGS[option]}" for option in options if option in FLAGS)
        instead = f"give flags to the command ({known})" if known else "remove them"
        raise UserError(f"{where}: options in a prompt are not read ({' '.join(options)}): {instead}")


def lettering(words: str, style: str) -> str:
    """Figure S10's prompt, word for word."""
    if not words.strip():
        raise UserError("letters are empty: give the words to be written")
    check(style)
    return f"the words that says '{words.strip()}' are written in English, in {style} style"


def check(style: str) -> None:
    if not style.strip():
        raise UserError("panel-style is empty: name the style as the reference's caption does")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise UserError where there is none, or an empty one."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("no prompt: give one with --prompt 'a cat in neon style', or a file of them with --prompts")


def read_prompts(config: GenerateConfig, warn: bool = True) -> list[str]:
    """The prompts given one by one, those of the file, one per line, empty lines and comments left out, then panels and
    letters. Texts as `read_pasted` takes them give their prompts alone. warn: of other tools' syntax. Raises UserError
    on options in prompts, and on tables."""
    found = pasted_prompts(config)
    prompts = [one.prompt for _, one in found]
    for where, one in found:
        check_options(one.prompt, where)
    if warn:
        warn_syntax(prompts, "prompts")
    if config.panel_style != GenerateConfig.panel_style and not (config.panels or config.letters):
        raise UserError("panel-style is of --panels and --letters: give one of them, or leave it out")
    prompts += [multi_panel(subjects.split(";"), config.panel_style) for subjects in config.panels]
    return prompts + [lettering(words, config.panel_style) for words in config.letters]


def pasted_prompts(config: GenerateConfig) -> list[tuple[str, Pasted]]:
    """The prompts given one by one and those of the file, each with the settings that stand below it, and with where
    it stands, for messages."""
    found = [
        (f"prompt {text.splitlines()[0]!r}" if text.strip() else "prompt", text.split("\n")) for text in config.prompt
    ]
    if config.prompts is not None:
        for number, line in numbered_lines(config.prompts, "prompts"):
            if is_settings(line) and len(found) > len(config.prompt):
                found[-1][1].append(line)
            else:
                found.append((f"prompts file {str(config.prompts)!r}, line {number}", [line]))
    return [(where, read_parameters(block)) for where, block in found]


def read_pasted(config: GenerateConfig) -> GenerateConfig:
    """The config with the settings of texts that impasto or A1111 write as `parameters`, where no flag gives them:

        a cat in neon sign style <lora:neon:0.8>
        Negative prompt: blurry
        Steps: 20, CFG scale: 7, Seed: 5, Size: 512x768, ...

    One warning names what is used and what is not. Raises UserError where several such texts differ: in a command all
    prompts have the same settings, and seeds that count up.
    """
    found = [(where, one) for where, one in pasted_prompts(config) if one.settings or one.unused]
    if not found:
        return config
    first = found[0][1].settings
    for i, (where, one) in enumerate(found):
        expected = first | ({"seed": first["seed"] + i} if "seed" in first else {})
        if different := [key for key in one.settings.keys() | expected if one.settings.get(key) != expected.get(key)]:
            raise UserError(f"{where}: its {different[0]} differs from that of prompts before: use a command for each")
    defaults = GenerateConfig()
    used = {key: value for key, value in first.items() if getattr(config, key) == getattr(defaults, key)}
    flags = {key: f"--{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in first.items()}
    strengths = dict(style for _, one in found for style in one.styles)
    styles = tuple(with_strength(style, strengths) for style in config.style)
    unused = [text for _, one in found for text in one.unused] + [flags[key] for key in first if key not in used]
    unused += [f"<lora:{name}:{strength}> (load it with --style)" for name, strength in strengths.items()]
    left = f"; not used: {', '.join(dict.fromkeys(unused))}" if unused else ""
    which = " ".join(flags[key] for key in used) or "none"
    warnings.warn(f"settings below the prompt are used as flags: {which}{left}", stacklevel=2)
    prompts = tuple(one.prompt for _, one in pasted_prompts(config))
    return replace(config, prompts=None, prompt=prompts, style=styles, **used)


def with_strength(style: str, strengths: dict[str, str]) -> str:
    """A style with the strength that `strengths` has for its name, unless it has its own; removes the name there."""
    name, *own = re.split("[:@]", Path(style).name)
    strength = strengths.pop(name, None)
    return style if own or strength is None else f"{style}:{strength}"
