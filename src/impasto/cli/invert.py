"""`impasto invert`."""

import shlex
from pathlib import Path

from impasto.cli.checks import check_bases, check_images
from impasto.cli.console import Result, parse


def invert(args: list[str]) -> Result:
    """Find the noise from which a base generates a given image."""

    def invert(
        image: Path,
        caption: str,
        base: str = "mini-sd3",
        components: Path | None = None,
        out: Path | None = None,
        steps: int = 50,
        until: float | None = None,
        refine: int | None = None,
        size: int | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Result:
        """DDIM or Euler inversion of a reference image: noise.safetensors and reconstruction.png.

        Args:
            image: The reference image; its middle square is used.
            caption: What it shows and in what style.
            base: Base model: an embedded one, a diffusers folder, a .safetensors checkpoint, or a hub id.
            components: A diffusers folder for what a .safetensors checkpoint does not hold.
            out: The folder; runs/inverted/<name of the image> when not given.
            steps: Inversion steps from the image to noise.
            until: Terminal timestep of 0 to 1000 (a rectified flow's noise share times 1000); all steps when not given.
            refine: Fixed-point iterations of each step: nearer to the image, each costs another inversion; 1 on a
                rectified flow, else 0, when not given.
            size: Pixels, square; the base's own when not given.
            device: cpu, cuda, mps or auto.
            precision: fp32, bf16 or auto (bf16 on CUDA).
        """
        check_images([image])
        check_bases(base)
        from impasto.invert import invert_image

        result = invert_image(
            base,
            image,
            caption,
            out=out,
            steps=steps,
            until=until,
            refine=refine,
            size=size,
            device=device,
            precision=precision,
            components=components,
        )
        command = ["impasto", "train", "--recipe", "instastyle", "--base", base, "--image", str(image)]
        return result | {"next": shlex.join([*command, "--caption", caption, "--out", "runs/style"])}

    return parse(invert, args, "invert")
