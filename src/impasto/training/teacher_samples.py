"""Images of a teacher to distil it on, where there is no folder of images: generated once, kept, resumed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from impasto.errors import UserError
from impasto.files import atomic, read_object, writable_folder
from impasto.generation import generate
from impasto.progress import Progress, ignore
from impasto.sampling.png import save_png

NAME = "samples.json"


def write_samples(
    teacher: str,
    prompts: Sequence[tuple[str, str | None]],
    count: int,
    folder: Path,
    *,
    styles: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress = ignore,
) -> Path:
    """Write `count` images of the base `teacher`, sampled as its card says, with metadata.jsonl; returns `folder`.

    prompts: (caption, the teacher's caption or None for the same), in turn; image i has the seed `seed + i`. Images
    that are there are kept. Raises UserError where `folder` holds samples of other settings.
    """
    if count < 1:
        raise UserError(f"--samples must be at least 1, not {count}")
    if not prompts:
        raise UserError("--samples needs captions to generate them for: --caption, --prompts FILE, or --pairs FILE")
    writable_folder(folder)
    settings: dict[str, Any] = {"teacher": teacher, "styles": list(styles), "prompts": [list(pair) for pair in prompts]}
    settings |= {"count": count, "seed": seed}
    if (folder / NAME).is_file() and read_object(folder / NAME) != settings:
        raise UserError(f"{folder} holds samples of another teacher or other prompts: choose another --out")
    with atomic(folder / NAME) as file:
        file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    pairs = [prompts[i % len(prompts)] for i in range(count)]
    done = next((i for i in range(count) if not (folder / f"{i:05d}.png").is_file()), count)
    if done < count:
        asked = [caption if own is None else own for caption, own in pairs[done:]]
        images = generate(teacher, asked, styles=styles, seed=seed + done, device=device, precision=precision)
        for i, (image, info) in enumerate(images, done):
            save_png(image, info, folder / f"{i:05d}.png")
            progress("generating the teacher's images", i + 1, count)
    lines = [
        {"file_name": f"{i:05d}.png", "text": caption} | ({} if own is None else {"teacher_text": own})
        for i, (caption, own) in enumerate(pairs)
    ]
    with atomic(folder / "metadata.jsonl") as file:
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return folder
