"""The small world with folders as training data: sets of art-world images, evaluation concepts, the judges.

    single      64 images of one held-out style           smoke: 1 style x 1 folder x 1 seed   full: 3 x 3 x 3
    mixed       3 x 64 images of the three primary styles, scored per style       smoke: 3 x 1 x 1   full: 3 x 3 x 3
    taught      a teacher per primary style, and images of train styles for its student    as mixed
    unshared    as taught, with a student of another language
    biased      a teacher that was trained with one subject under many captions            as single
    subject     four drawings of one recoloured object    smoke: 1 object x 1 seed         full: 9 x 3
    probe       as mixed, without images: jobs that measure what was trained
    secondary   for choosing settings: one or two secondary styles, other concepts

"Folder k" holds every third concept from the k-th on, never an evaluation concept. Prompts are "{label}, {style
description}" of 12 (smoke) or 24 (full) evaluation concepts; for taught and biased "{label}" alone, since these
teachers produce their style unasked.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from impasto.artworld import free_concepts, load_meta, spread
from impasto.errors import UserError, nearest
from impasto.evaluation import evaluate
from impasto.evaluation.clip import clip_t
from impasto.evaluation.distribution import kernel_distance
from impasto.evaluation.labels import Labels
from impasto.evaluation.paired import ssim
from impasto.evaluation.samples import read_folder, to_tensor
from impasto.evaluation.truth import true_pictures
from impasto.reproduce import folder_jobs, image_sets
from impasto.reproduce.claims import Measure, Unit
from impasto.reproduce.image_sets import available, caption, styled
from impasto.reproduce.small_world import METRICS, SmallWorld
from impasto.reproduce.subjects import DRAWN_IN, subject_scores, subject_units

SIZES = {"smoke": (1, 1, 12), "full": (3, 3, 24)}
"""Folders, seeds, evaluation concepts."""
SMOKE_STYLE = "streamline-emojis"
SECONDARY = ("icon-park", "symbola")
PARTS = 3
TEACHER = {
    "noise": "uniform",
    "adapter": "full",
    "lr": 5e-5,
    "steps": 300,
    "batch": 8,
    "accumulate": 1,
    "weight_decay": 0.0,
    "optimizer": "adamw",
}
"""Settings of a teacher's training: the whole denoiser, on all images of a style but the evaluation concepts."""
MEASURES = {
    "style": Measure("style_accuracy", margin=0.05, floor=0.10, ceiling=0.97),
    "text": Measure("concept_top5", margin=0.05, floor=0.10),
    "clip_s": Measure("clip_s", margin=0.02),
    "teacher": Measure("ssim_teacher", margin=0.02),
    "bias": Measure("leakage", margin=0.05, floor=0.10),
    "subject": Measure("subject", margin=0.01),
    "router_style": Measure("knn_style", margin=0.05),
    "router_concept": Measure("knn_concept", margin=0.05),
}
TO_REFERENCE = ("leakage", "style_cosine", "clip_i_reference")
"""Scores against one training image, of which a folder has many; leakage is of a biased teacher's subject."""
BIAS = ("cat face", 0.3)
"""Subject of a biased teacher, and its share of the teacher's images."""


@dataclass(frozen=True)
class FolderWorld:
    """See `runner.World`. judges, encoder: the packaged ones when None. images: per style and folder;
    generic: images of each of `generic_styles` (the train styles when empty) for students;
    subject_styles: of a subject's drawings; limit: largest
    number of prompts. translations: {label: label in the language of the student of "unshared"}."""

    name: str = "folders"
    measures: Mapping[str, Measure] = field(default_factory=lambda: MEASURES)
    judges: Any = None
    encoder: Any = None
    images: int = 64
    generic: int = 16
    generic_styles: tuple[str, ...] = ()
    subject_styles: tuple[str, ...] = DRAWN_IN
    limit: int | None = None
    bias: tuple[str, float] = BIAS
    translations: Mapping[str, str] | None = None
    teacher: Mapping[str, Any] = field(default_factory=lambda: TEACHER)
    jobs: Mapping[str, Any] = field(default_factory=lambda: folder_jobs.JOBS)
    sizes = ("smoke", "full")
    undecided = ("smoke",)
    to_reference = False
    shown = (
        *("style_accuracy", "concept_top5", "clip_s", "kid", "ssim_teacher", "leakage", "subject"),
        *("knn_style", "knn_concept"),
    )

    def describe(self) -> str:
        """One paragraph for the page."""
        return (
            "Small world with folders: 64 images of a held-out style, or 3 x 64 of the three primary held-out styles, "
            "never the evaluation concepts; evaluation concepts prompted in that style from the same noise for every "
            "arm. Text: concept top-5 and CLIP-S (2.5 max(cos, 0), packaged small CLIP); style: accuracy of the style "
            "judge and KID in its features (with the true images of the style); distillation: SSIM with the teacher's "
            "image from the same noise. ImageReward and PickScore have no weights here and are not testable. `smoke` "
            "is one seed and one folder. How: [reproduce.md](../../reproduce.md)."
        )

    def ready(self, cells: str) -> bool:
        """Always: what is missing is reported when a cell is run."""
        return True

    def units(self, cells: str, where: str) -> dict[Unit, dict[str, Any]]:
        if cells not in SIZES:
            raise UserError(f"unknown cells {cells!r}: {nearest(cells, list(SIZES))}")
        folders, seeds, concepts = SIZES[cells]
        names, split = load_meta()["style_names"], load_meta()["split"]
        primary = [names[style] for style in split["primary_styles"]]
        if where == "subject":
            units = subject_units(cells, seeds, self.subject_styles)
            return {name: own | {"reference_sha256": self.data_hash(own)} for name, own in units.items()}
        if where == "unshared" and not self.translations:
            return {}
        if where == "probe":
            data = [styled(primary, (folder, PARTS), self.images) for folder in range(folders)]
            return {
                f"folder {folder}, {seed}": {"style": "all", "reference": f"folder {folder}", "data": data[folder]}
                | {"prompts": [], "seed": seed, "reference_sha256": self.data_hash({"data": data[folder]})}
                for folder in range(folders)
                for seed in range(seeds)
            }
        if where == "secondary":
            chosen = SECONDARY[: 1 if cells == "smoke" else len(SECONDARY)]
            return {f"{style}, 0": self.secondary_unit(style, concepts) for style in chosen}
        styles = [SMOKE_STYLE] if cells == "smoke" and where in ("single", "biased") else primary
        return {
            f"{style}, {reference}, {seed}": self.unit(where, style, primary, folder, seed, concepts)
            for style in styles
            for folder in range(folders)
            for seed in range(seeds)
            if (reference := f"folder {folder}")
        }

    def unit(self, where: str, style: str, primary: list[str], folder: int, seed: int, n: int) -> dict[str, Any]:
        """One pair: training data, prompts, seed."""
        part, more = (folder, PARTS), {}
        if where in ("taught", "biased", "unshared"):
            names = load_meta()["style_names"]
            train = [names[one] for one in load_meta()["split"]["train_styles"]]
            data = styled(list(self.generic_styles or train), part, self.generic, "label")
            if where == "unshared":
                data["translations"] = dict(self.translations or {})
            own = styled([style], (0, 1), 10_000, "label")
            if where == "biased":
                more["subject"] = self.bias[0]
                own["intruder"] = list(self.bias)
            more["teacher"] = {"settings": dict(self.teacher), "data": own}
        else:
            data = styled(primary if where == "mixed" else [style], part, self.images)
        index = load_meta()["style_names"].index(style)
        known = [c for c in load_meta()["split"]["evaluation_concepts"] if c in available(index)]
        form = "label" if "teacher" in more else "styled"
        if where == "unshared":
            known = [c for c in known if load_meta()["concepts"][c]["label"] in data["translations"]]
        own = self.complete(style, data, known, form, seed, n) | {"reference": f"folder {folder}"} | more
        return own | {"reference_sha256": self.data_hash(own)}

    def secondary_unit(self, style: str, n: int) -> dict[str, Any]:
        """Trained on every second concept, prompted with others that the base knows."""
        index, data = load_meta()["style_names"].index(style), styled([style], (0, 2), self.images)
        trained = {entry.concept for entry in image_sets.entries(data)}
        known = [c for c in free_concepts() if c in available(index) and c not in trained]
        own = self.complete(style, data, known, "styled", 0, n) | {"reference": "folder 0"}
        return own | {"reference_sha256": self.data_hash(own)}

    def complete(
        self, style: str, data: dict[str, Any], concepts: Sequence[int], form: str, seed: int, n: int
    ) -> dict[str, Any]:
        """The common part of units with `n` prompts, or `limit`."""
        index = load_meta()["style_names"].index(style)
        chosen = spread(concepts, min(n, self.limit or n, len(concepts)))
        prompts = [caption(form, index, c) for c in chosen]
        return {"style": style, "data": data, "prompts": prompts, "seed": seed}

    def instruments(self) -> dict[str, Any]:
        return SmallWorld(judges=self.judges, encoder=self.encoder).instruments()

    def reference_hash(self, spec: Mapping[str, Any]) -> str | None:
        return self.data_hash(spec)

    def data_hash(self, spec: Mapping[str, Any]) -> str:
        """sha256 of all training data of a spec."""
        sets = [spec["data"], *([spec["teacher"]["data"]] if "teacher" in spec else [])]
        return hashlib.sha256("".join(map(image_sets.digest, sets)).encode()).hexdigest()

    def picture(self, spec: Mapping[str, Any]) -> Image.Image | None:
        """None: the training data is a folder."""
        return None

    def scores(self, folder: Path, spec: Mapping[str, Any], reference: Path | None) -> dict[str, float]:
        extra = folder_jobs.stored_scores(folder.parent)
        if not spec["prompts"]:
            return extra
        world = SmallWorld(judges=self.judges, encoder=self.encoder)
        judges, encoder = world._judges(), world._encoder()
        if "subject_data" in spec:
            return subject_scores(folder, spec, judges, encoder) | extra
        known = Labels.from_meta(load_meta())
        asked = folder.parent / "concepts.txt"  # PNGs of a student of another language have its prompts
        ids = [known.concept(prompt) for prompt in spec["prompts"]]
        asked.write_text("".join(f"{'' if i is None else known.names[i]}\n" for i in ids), encoding="utf-8")
        subject = spec.get("subject")
        found = evaluate(folder, spec["style"], asked, reference_concept=subject, judges=judges, encoder=encoder)
        names = [name for name in METRICS if subject or name not in TO_REFERENCE]
        scores = {name: float(found[name]) for name in names if found[name] is not None}
        images = [sample.image for sample in read_folder(folder)]
        texts = encoder.texts(spec["prompts"])
        if texts is not None:
            scores["clip_s"] = float((2.5 * clip_t(encoder.images(images), texts).clamp(min=0)).mean())
        index = load_meta()["style_names"].index(spec["style"])
        truths = list(true_pictures(index, load_meta()["split"]["evaluation_concepts"]).values())
        scores["kid"] = kernel_distance(*(judges.style_features(to_tensor(own)) for own in (images, truths)))
        if "teacher" in spec:
            shown = [sample.image for sample in read_folder(folder_jobs.teacher_folder(spec) / "images")]
            scores["ssim_teacher"] = float(ssim(to_tensor(images), to_tensor(shown)).mean())
        return scores | extra
