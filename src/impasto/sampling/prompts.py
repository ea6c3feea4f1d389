"""Prompts as the Style-Friendly SNR sampler's authors word them (arXiv 2411.14793 v3).

A multi-panel comic is one picture in one style: it is learnt from a single reference whose caption names the layout ("A
humorous sequence featuring a red cartoon character in a multi-panel comic style", figure S6), and asked for as any
other style, "{subject} in {style} style"; the model puts the subject into every panel. Lettering is figure S10's.
"""

from collections.abc import Sequence
from pathlib import Path

from impasto.errors import UserError
from impasto.sampling.config import GenerateConfig


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
    """The lines of a text file, which hold `what`, without empty ones. Raises UserError when it cannot be read."""
    try:
        found = file.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028 and the like, as splitlines() does
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} file {str(file)!r} cannot be read: {error}") from None
    return [line.strip() for line in found if line.strip()]


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


def read_prompts(config: GenerateConfig) -> list[str]:
    """The prompts given one by one, those of the file, one per line, empty lines left out, then panels and letters."""
    prompts = list(config.prompt)
    if config.panel_style != GenerateConfig.panel_style and not (config.panels or config.letters):
        raise UserError("panel-style is of --panels and --letters: give one of them, or leave it out")
    if config.prompts is not None:
        prompts += lines(config.prompts, "prompts")
    prompts += [multi_panel(subjects.split(";"), config.panel_style) for subjects in config.panels]
    return prompts + [lettering(words, config.panel_style) for words in config.letters]
