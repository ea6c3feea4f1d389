"""Fitting an adapter to the references: family x noise law x objective x adapter.

    cache x and c of the references
    for each step:  lam ~ law, eps ~ N(0, I);  L = objective(family, (x, eps, c), lam);  optimiser step on the adapter

All randomness is a function of (seed, step, item) and every checkpoint is complete: the same command resumes where it
was stopped, and ends with the same adapter and the same loss column, bit for bit.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from impasto.adapters.base import adapter_of
from impasto.bases import cards, loader
from impasto.config import TrainConfig, change
from impasto.data import items as data
from impasto.data.draws import Draws
from impasto.data.prepare import prepare_items
from impasto.errors import UserError
from impasto.evaluation.samples import open_image
from impasto.execution import memory
from impasto.execution.apply import ExecutionPlan, apply_execution, load_denoiser
from impasto.failures import interruptible, out_of_memory
from impasto.families.base import Family
from impasto.noise import offset
from impasto.noise.laws import truncate_to_schedule
from impasto.objectives.base import Objective, build_objective
from impasto.progress import Progress, ignore
from impasto.styles import hub
from impasto.styles.card import CARD, write_card
from impasto.styles.defaults import own_sampling
from impasto.styles.load import load_style
from impasto.styles.parts import add_to_style_json, has_weights
from impasto.styles.save import save
from impasto.styles.weights import style_hash
from impasto.training import prior
from impasto.training.base_previews import describe_base
from impasto.training.checkpoints import describe_last, explain_failures
from impasto.training.initial import load_initial, provenance_of_initial
from impasto.training.plan import Plan, check_base, describe, make_plan, warn_advice
from impasto.training.previews import Previews
from impasto.training.run_folder import RunFolder
from impasto.training.trainable import TrainableParameters
from impasto.training.trainer import NotFiniteError, Trainer, mean_of_last
from impasto.training.watch import Watch, choose, load_chosen, read_rows, save_chosen, stops
from impasto.training.workers import Workers

REFERENCES = 8
"""Images that are copied into the style folder."""
PACKAGES = ("impasto", "torch", "diffusers", "transformers", "peft", "accelerate")


def fit(config: TrainConfig, progress: Progress = ignore, dry_run: bool = False) -> dict[str, Any]:
    """Plan, open the run, prepare, train, finish; see `training.train.train`. With dry_run the plan alone."""
    if dry_run:
        plan = make_plan(config)
        return describe(plan) | {"cost": measure_step(plan)}
    started = time.perf_counter()
    workers = Workers(config.device)
    check_sharded(config, workers)
    with workers.first_process_first():
        plan = make_plan(config, progress, workers.shards)
    warn_advice(plan)
    progress(f"loading {config.base}")
    family = load_family(plan, workers)
    running = workers.broadcast(plan.choose_execution(family, workers.size if workers.shards else 1))
    plan = with_used(plan, quantize=running.quantize, precision=family.precision)
    config = plan.config
    objective = build_objective(config.objective, family)
    with workers.first_process_first():
        run = RunFolder(config, provenance(plan, family, objective, workers, running), main=workers.main)
    try:
        done, state = run.resume()
        if done in run.earlier and config.optim.schedule != "constant":
            warnings.warn(
                f"the run goes on from step {done}: its learning rate starts again at {config.optim.lr:g} and falls "
                f"({config.optim.schedule}) over the added steps",
                stacklevel=2,
            )
        if config.sampling.given and not done and workers.main:
            add_to_style_json(config.out, {"sampling": own_sampling(config.out) | config.sampling.given})
        hint = memory.oom_hint_train(config, running, "" if workers.shards else family.device)
        ended = done == config.optim.steps or stops(read_rows(config.out, done), config.evaluate)
        finished = ended and has_weights(config.out) and (config.out / CARD).is_file()
        with explain_failures(config.out, hint):
            if not finished:
                with workers.first_process_first():
                    draws, previews, watch = prepare(plan, family, objective, progress)
                trainer = build_trainer(plan, family, objective, running, draws, done, state, workers, run.earlier)
                if workers.main and not running.compile:  # what is compiled would be compiled for its shapes as well
                    show_base(plan, previews, progress)
                last = run_steps(trainer, run, done, previews, progress, watch)
                if workers.main:
                    finish(plan, family, trainer, previews, progress, watch, last)
                workers.barrier()
    finally:
        run.close()
    result = summarize(config, run, done, time.perf_counter() - started) | {"running": "; ".join(running.why)}
    if config.log.push_to_hub and workers.main:
        result["hub"] = hub.publish(config.out, config.log.push_to_hub, private=config.log.hub_private)["url"]
    return result


SMALL = 50_000_000
"""Parameters of a denoiser of which a step is quickly measured, whatever the device."""


def measure_step(plan: Plan) -> dict[str, float] | None:
    """{"step_seconds", "seconds", "memory_gb"} of a small base on a CPU, by running a second step; memory is this
    process's. None for other bases and devices, see `execution.memory` for their estimate."""
    here = cards.card(plan.config.base).get("embedded") or Path(plan.config.base).is_dir()
    if plan.outline is None or plan.device != "cpu" or not here:
        return None
    if sum(p.numel() for p in memory.meta_model(plan.outline).parameters()) > SMALL:
        return None
    plan = with_used(plan, preview=False)
    workers = Workers(plan.device)
    family = load_family(plan, workers)
    objective = build_objective(plan.config.objective, family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run will give them
        draws, *_ = prepare(with_used(plan, **{"evaluate.every": 0}), family, objective, ignore)
    trainer = build_trainer(plan, family, objective, plan.choose_execution(family), draws, 0, {}, workers)
    family.denoiser.train()
    trainer.step(1)
    started = time.perf_counter()
    trainer.step(2)
    seconds = time.perf_counter() - started
    return {
        "step_seconds": round(seconds, 3),
        "seconds": round(seconds * plan.config.optim.steps, 1),
        "memory_gb": round(psutil.Process().memory_info().rss / memory.GB, 2),
    }


def check_sharded(config: TrainConfig, workers: Workers) -> None:
    """Raise UserError where a base sharded over processes would have to generate images."""
    generated = config.prior.weight and not config.prior.image
    if workers.shards and (config.log.preview or generated):
        what, instead = "previews", "--no-preview, and `impasto generate` later"
        if not config.log.preview:
            what, instead = "prior", "--prior.weight 0"
        raise UserError(f"a base sharded over processes generates no images for {what}: {instead}")


def load_family(plan: Plan, workers: Workers) -> Family:
    """The base, downloaded by the first process; of the settings on it what `make_plan` could not check yet."""
    config = plan.config
    with workers.first_process_first():
        family = loader.load(
            config.base, device=config.device, precision=config.precision, components=config.components
        )
        if plan.outline is None:
            check_base(plan, family, workers.shards)
    return family


def with_used(plan: Plan, **keys: Any) -> Plan:
    """The plan with values that "auto" resolved to."""
    return replace(plan, config=change(plan.config, **keys), expanded=change(plan.expanded, **keys))


def prepare(
    plan: Plan, family: Family, objective: Objective, progress: Progress
) -> tuple[Draws, Previews, Watch | None]:
    """Encode images and captions, then free the encoders. The watch is None where nothing is evaluated."""
    config = plan.config
    with explain_failures(config.out, memory.oom_hint_prepare(config)):
        teacher = getattr(objective, "text_family", None)
        dropout = config.data.caption_dropout > 0
        prepared = prepare_items(family, plan.items, dropout, progress, teacher, plan.text.spell)
        if config.prior.weight:
            prior.read(plan.expanded, family, plan.prior_items)
        previews, watch = Previews(family, plan.expanded, plan.text), None
        if config.evaluate.every:
            shown = [item.picture.load().image for item in data.pictures(plan.items)[:REFERENCES]]
            watch = Watch(family, plan.expanded, plan.text, shown)
    levels = truncate_to_schedule(plan.law, family.schedule)
    offset.warn_ineffective(config.noise.offset, levels, prepared.x[0][0].numel())
    draws = Draws(config, levels, prepared.to(family.device), family.device)
    family.free("encoders", "vae")
    return draws, previews, watch


def build_trainer(
    plan: Plan,
    family: Family,
    objective: Objective,
    running: ExecutionPlan,
    draws: Draws,
    done: int,
    state: dict[str, Any],
    workers: Workers,
    earlier: Sequence[int] = (),
) -> Trainer:
    """The base on the device, the adapter on the base, the optimiser on the adapter. state: of a checkpoint after
    `done` steps, or {}. earlier: see `learning_rate`."""
    config = plan.config
    text_parameters = plan.text.attach(family)
    if style := getattr(config.objective, "teacher_style", None):
        load_teacher_style(getattr(objective, "teacher"), style)  # noqa: B009
    load_denoiser(running, family, sharded=workers.shards)
    if config.prior.weight:  # its images may be the base's: before the adapter
        objective = prior.build(plan.expanded, family, objective, plan.prior_items)
    adapter = adapter_of(config.adapter).attach(family, config.adapter, config.seed)
    if not state:
        load_initial(config, family, adapter | text_parameters)
    apply_execution(running, family, adapter)
    workers.shard(family.denoiser, adapter)
    trainable = TrainableParameters(config.optim, adapter | text_parameters, done, state, plan.text.rates, earlier)
    return Trainer(config, family, plan.text, objective, draws, trainable, workers)


def load_teacher_style(teacher: Family, style: Path) -> None:
    """Put a style on a teacher's denoiser. Raises UserError where it is for another base."""
    encoders: dict[str, Any] = dict.fromkeys(teacher.encoder_parts)
    load_style(teacher.pipeline(**encoders, **{teacher.part: teacher.denoiser}), style)


def run_steps(
    trainer: Trainer,
    run: RunFolder,
    done: int,
    previews: Previews,
    progress: Progress,
    watch: Watch | None = None,
) -> int:
    """Steps `done + 1` to the last, each with its row in metrics.jsonl, checkpoints and evaluations. Returns the last
    step, which the rule of `watch` may bring forward."""
    config, log, trainable = trainer.config, trainer.config.log, trainer.trainable
    steps, every = config.optim.steps, config.evaluate.every
    if stops(read_rows(config.out, done), config.evaluate):
        return done
    trainer.family.denoiser.train()
    with interruptible() as interrupted:
        for step in range(done + 1, steps + 1):
            try:
                row, stop = trainer.step(step, bool(interrupted))
            except NotFiniteError as error:
                run.drop(step - 1)  # its weights lead to NaN
                raise UserError(
                    f"{error}. {describe_last(config.out)}, in {run.state}; train into another --out with a lower --lr"
                ) from None
            except Exception as error:
                if out_of_memory(error) and step > done + 1:  # nothing has changed since the last step
                    run.save(step - 1, trainable.tensors())
                raise
            run.log(row)
            progress("training", step, steps, f"loss {row['loss']:.3f}")
            stop = stop or (trainer.workers.size == 1 and bool(interrupted))
            evaluated = bool(every) and not stop and (step % every == 0 or step == steps)
            if watch is not None and evaluated and trainer.workers.main:
                evaluate_step(watch, trainer, step, progress)
            if step % log.checkpoint_every == 0 or step == steps or stop or evaluated:
                run.save(step, trainable.tensors())
            if stop:
                raise KeyboardInterrupt(f"stopped after step {step}: the same command resumes from there")
            if log.preview_every and step % log.preview_every == 0 and step < steps and trainer.workers.main:
                with trainable.averaged():
                    generate_previews(previews, step, progress)
            if evaluated and trainer.workers.broadcast(stops(read_rows(config.out, step), config.evaluate)):
                steps = step
                break
    trainer.family.denoiser.eval()
    return steps


def evaluate_step(watch: Watch, trainer: Trainer, step: int, progress: Progress) -> None:
    """Score the model, and keep its weights where the rule chooses this step."""
    progress("evaluating", step, trainer.config.optim.steps)
    with trainer.trainable.averaged():
        row = watch.evaluate(step)
        if watch.chosen(step) == row:
            save_chosen(trainer.config.out, step, trainer.trainable.named)
    progress("evaluating", step, trainer.config.optim.steps, f"style {row['style']:.3f}, text {row['text']:.3f}")


def finish(
    plan: Plan,
    family: Family,
    trainer: Trainer,
    previews: Previews,
    progress: Progress,
    watch: Watch | None = None,
    last: int = 0,
) -> None:
    """The files of the style folder: adapter, references, previews, and last the card, which marks the run as complete.
    The weights are those of the step that `watch` chose, else of the last one; it also advises strength and guidance.

    Warns of an image that has been moved or changed since: it has no copy here.
    """
    config = plan.expanded
    with trainer.trainable.averaged():
        if watch is not None:
            use_chosen(watch, trainer, last)
            if config.evaluate.advice:
                watch.advise(progress)
                if previews.prompts:
                    previews.read_defaults()
        save(family, config.out, plan.text, adapter_of(config.adapter))
        if known := provenance_of_initial(config):
            add_to_style_json(config.out, known)
        for i, item in enumerate(data.pictures(plan.items)[:REFERENCES]):
            try:
                item.picture.load().image.save(config.out / f"reference{f'-{i}' if i else ''}.png")
            except UserError as error:
                warnings.warn(f"no copy of a reference in the style folder: {error}", stacklevel=2)
        names = generate_previews(previews, config.optim.steps, progress)
        if names:
            show_base(plan, previews, progress)
        write_card(config, family, list(zip(previews.prompts, names, strict=bool(names))), version("impasto"))


def use_chosen(watch: Watch, trainer: Trainer, last: int) -> None:
    """Put the weights of the chosen step into the model; warns where they are not there."""
    row = watch.chosen(last)
    if row is None or row["step"] == last or load_chosen(watch.config.out, row["step"], trainer.trainable.named):
        return
    warnings.warn(
        f"the weights of the chosen step {row['step']} are not in {str(watch.config.out)!r}: the style has those "
        f"of the last step, {last}",
        stacklevel=2,
    )


def show_base(plan: Plan, previews: Previews, progress: Progress) -> None:
    """The base's own images, once; warns where those of the first caption are in the reference's style already."""
    try:
        made = previews.generate_base(progress)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return  # the previews of the style say what to do
    if not made:
        return
    previews.family.free("vae")
    caption = plan.expanded.data.caption[0] if plan.expanded.data.caption else None
    images = [open_image(plan.config.out / name)[0] for name, prompt in made.items() if prompt == caption]
    reference = data.pictures(plan.items)[0].picture.load().image
    if known := describe_base(plan.config.base, reference, images):
        warnings.warn(known, stacklevel=2)


def generate_previews(previews: Previews, step: int, progress: Progress) -> list[str]:
    """The names of the previews; none, and a warning, where the device has no memory for them beside training."""
    try:
        return previews.generate(step, progress)
    except Exception as error:
        if not out_of_memory(error):
            raise
    warnings.warn(
        f"no previews of step {step}: they need more memory than there is beside training; generate images later with "
        "`impasto generate`, or leave previews out with --no-preview",
        stacklevel=2,
    )
    return []


def provenance(
    plan: Plan, family: Family, objective: Objective, workers: Workers, running: ExecutionPlan
) -> dict[str, Any]:
    """What recipe.toml states beside the settings: hashes, whether the base was a folder or file here, captions,
    processes, execution, versions of what computes."""
    base: dict[str, Any] = {"base_sha256": family.hash, "base_local": Path(plan.config.base).exists()}
    base |= getattr(objective, "provenance", {})
    if style := getattr(plan.config.objective, "teacher_style", None):
        base["teacher_style_sha256"] = style_hash(style)
    if plan.config.init_from is not None:
        base["init_sha256"] = style_hash(plan.config.init_from)
    used = data.caption_stats(plan.items) | {"processes": workers.size, "running": list(running.why)}
    return base | plan.hashes() | used | {name: version(name) for name in PACKAGES}


def summarize(config: TrainConfig, run: RunFolder, resumed_from: int, seconds: float) -> dict[str, Any]:
    """The result of the command."""
    return {
        "out": str(config.out),
        "base": config.base,
        "recipe": config.recipe,
        "steps": config.optim.steps,
        "resumed_from": resumed_from,
        "loss": mean_of_last([row["loss"] for row in run.rows()]),
        "seconds": round(seconds, 2),
    } | summarize_evaluations(config)


def summarize_evaluations(config: TrainConfig) -> dict[str, Any]:
    """The chosen step with its scores, the seconds of all evaluations, and the advised sampling; {} without any."""
    rows = read_rows(config.out) if config.evaluate.every else []
    if not rows:
        return {}
    row = choose(rows, config.evaluate.margin)
    found: dict[str, Any] = {"chosen_step": row["step"], "chosen_style": row["style"], "chosen_text": row["text"]}
    found["evaluation_seconds"] = round(sum(one["seconds"] for one in rows), 1)
    return found | ({"advised": own_sampling(config.out)} if config.evaluate.advice else {})
