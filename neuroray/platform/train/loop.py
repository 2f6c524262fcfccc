"""The training loop: steps, evaluation, selection on the validation people, checkpoints, resuming, export."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from neuroray.platform.data.duplicates import find_duplicates, tell_duplicates
from neuroray.platform.data.plan import Plan, PlanConfig, item_at
from neuroray.platform.data.windows import choose_windows
from neuroray.platform.train.checkpointing import Checkpoints, load_model
from neuroray.platform.train.feed import choose_feed, stream_batches
from neuroray.platform.train.manifest import Progress
from neuroray.platform.train.metrics_log import MetricsLog
from neuroray.platform.train.optim import WeightAverage, build_optimizer, learning_rate
from neuroray.platform.train.parallel import Team, join_team, shard
from neuroray.platform.train.recipe import SELECTION_SIGN, LoopConfig, Recipe, RecipeError
from neuroray.platform.train.run_folder import (
    CHECKPOINTS,
    MODEL,
    RESULT_FILE,
    FitResult,
    choose_version,
    identity,
    read_result,
    require_same_run,
    write_json,
    write_start,
)
from neuroray.platform.train.step import Learner, RankBatch, TrainingError, require_finite, train_step, validate
from neuroray.platform.train.task import Cohort, RivalTask, TaskModule, WatchedTask
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0

Watch = Callable[[Iterable[RankBatch], int], Iterable[RankBatch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that a worker needs to know; it pickles."""

    recipe: Recipe
    cohort: Cohort
    folder: Location


def fit(recipe: Recipe, *, store: str, out: str, watch: Watch | None = None) -> FitResult:
    """Trains a recipe on a store, or continues where an earlier call with the same `out` was interrupted.

    With `scaling.num_workers` 0 everything happens in this process; otherwise Ray Train starts the workers, on the
    Ray cluster that this process is connected to, and starts them again when one dies.

    Args:
        recipe: The run.
        store: Address of the scan store.
        out: The run folder: a path, or a bucket, which workers on several machines need.
        watch: Wraps the batches of a run in process and their number, to show how far it is.

    Raises:
        RecipeError: training cannot start, or `out` holds another run.
        TrainingError: a loss that is no number.
    """
    return fit_run(prepare_run(recipe, store=store, folder=Location(out)), watch=watch)


def prepare_run(recipe: Recipe, *, store: str, folder: Location) -> Run:
    """Chooses the people and checks that training can start, or go on, in this folder; writes nothing.

    Raises:
        RecipeError: training cannot start, or the folder holds another run.
        PlanError: windows that do not fit the scans.
    """
    version = ScanStore(store, version=choose_version(folder, recipe)).version
    opened = ScanStore(store, version=version)
    cohort = recipe.task().prepare(opened)
    leaks = find_duplicates(opened.records(), cohort.split)
    if leaks:
        raise RecipeError(
            "the same picture is on two sides of the split, under several names",
            given=tell_duplicates(leaks, cohort.split),
            expected="every scan once",
            fix="neuroray remove STORE --subject ID for the copies, or give their people one family_id",
        )
    pinned = dataclasses.replace(recipe.data, store=cohort.store, version=version)
    run = Run(recipe=dataclasses.replace(recipe, data=pinned), cohort=cohort, folder=folder)
    for plan in (training_plan, validation_plan):
        plan(run.recipe, cohort)  # windows that do not fit the scans are told now, not on a worker
    require_same_run(folder, run.recipe, cohort)
    return run


def fit_run(run: Run, *, watch: Watch | None = None) -> FitResult:
    """`fit`, for a run that is prepared."""
    finished = read_result(run.folder)
    if finished is not None:
        logger.info("the run in %s is finished already", run.folder.uri)
        return dataclasses.replace(finished, was_finished=True)
    write_start(run.folder, run.recipe, run.cohort)
    if run.recipe.scaling.num_workers == 0:
        return train_worker(run, watch=watch)
    from neuroray.platform.train.launch import train_on_ray

    return train_on_ray(run)


def train_worker(run: Run, *, watch: Watch | None = None) -> FitResult:
    """Trains from the newest checkpoint, or from the start, to the end; called on every worker, or in process.

    Raises:
        TrainingError: a loss that is no number.
        RecipeError: the folder's checkpoints belong to another run.
    """
    use_gpu = run.recipe.scaling.use_gpu
    if use_gpu and not torch.cuda.is_available():
        raise RecipeError("scaling.use_gpu is set, and torch finds no GPU", fix="leave --scaling.use-gpu out")
    training = _Training(run, join_team(use_gpu=use_gpu))
    training.run_to_end(watch)
    return training.finish()


def training_plan(recipe: Recipe, cohort: Cohort) -> Plan:
    """Which scan is read at which step."""
    config = PlanConfig(batch_size=recipe.loop.batch_size, seed=recipe.seed, sampling=recipe.data.sampling)
    items = choose_windows(cohort.split.train, cohort.num_frames, recipe.data.windows, seed=recipe.seed)
    scan_ids = (item_at(items, index, epoch=0).scan_id for index in range(len(items)))
    return Plan(
        items=items,
        config=config,
        num_epochs=recipe.loop.num_epochs,
        labels=tuple(cohort.split.dealt_as[scan_id] for scan_id in scan_ids),
    )


def validation_plan(recipe: Recipe, cohort: Cohort) -> Plan:
    """Everybody on the validation side once, in order: whole scans, or windows that cover every frame of theirs."""
    config = PlanConfig(batch_size=recipe.loop.batch_size, sampling="in_order")
    windows = choose_windows(cohort.split.val, cohort.num_frames, recipe.data.windows.covering(), seed=recipe.seed)
    return Plan(items=windows, config=config)


def weigh(
    progress: Progress,
    scores: dict[str, float],
    *,
    checkpoint: str,
    config: LoopConfig,
    intervals: dict[str, Any] | None = None,
) -> Progress:
    """The progress after an evaluation: a better one becomes the best; the validation loss decides a tie."""
    is_first = progress.best_step is None
    if is_first or _rank_of(scores, config) > _rank_of(progress.best_scores, config):
        return dataclasses.replace(
            progress,
            best_step=progress.step,
            best_scores=scores,
            best_checkpoint=checkpoint,
            best_intervals=intervals or {},
            evaluations_since_best=0,
        )
    waited = progress.evaluations_since_best + 1
    is_over = config.patience is not None and waited >= config.patience
    return dataclasses.replace(progress, evaluations_since_best=waited, stopped_early=is_over)


def _rank_of(scores: dict[str, float], config: LoopConfig) -> tuple[float, float]:
    return SELECTION_SIGN[config.select_by] * scores[config.select_by], -scores["val_loss"]


class _Training:
    """One attempt at a run, seen from one rank: what changes from step to step."""

    def __init__(self, run: Run, team: Team) -> None:
        self._run, self._loop, self._team = run, run.recipe.loop, team
        self._learner = _build_learner(run, team)
        self._reader = self._learner.task.reader(run.cohort)
        self._plan = training_plan(run.recipe, run.cohort)
        self._checkpoints = Checkpoints(
            run.folder.child(CHECKPOINTS),
            team,
            attempt=team.broadcast(uuid.uuid4().hex[:8]),
            keep=self._loop.keep_checkpoints,
            identity=identity(run.recipe, run.cohort),
        )
        learner = self._learner
        self._progress = self._checkpoints.restore(learner.module, learner.optimizer, average=learner.average)
        self._resumed_from = self._progress.step
        self._last_line = 0.0
        if self._resumed_from:
            self._say("continuing after step %d of %d", self._resumed_from, self._plan.num_steps)

    def run_to_end(self, watch: Watch | None) -> None:
        """Does the steps that are left."""
        if self._progress.stopped_early:
            return
        done = self._progress.step
        feed = choose_feed(self._run.recipe.data.feed, self._team)
        stream = stream_batches(self._plan, self._reader, self._team, feed=feed, start_step=done)
        with self._open_log() as log, contextlib.closing(stream):
            for batch in stream if watch is None else watch(stream, self._plan.num_steps - done):
                self._advance(batch, log)
                if self._progress.stopped_early:
                    break

    def finish(self) -> FitResult:
        """Exports the best weights and writes the result."""
        best_step = self._progress.best_step
        if best_step is None:
            raise TrainingError("the run has no evaluation to choose weights by", given=self._progress)
        result = FitResult(
            run=self._run.folder.uri,
            model=self._run.folder.child(MODEL).uri,
            num_steps=self._progress.step,
            stopped_early=self._progress.stopped_early,
            best_step=best_step,
            best_scores=self._progress.best_scores,
            resumed_from=self._resumed_from,
        )
        if self._team.is_lead:
            self._export()
            write_json(self._run.folder, RESULT_FILE, result.to_json())
        return self._team.broadcast(result)

    def _advance(self, batch: RankBatch, log: MetricsLog | None) -> None:
        began, step = time.perf_counter(), batch.step + 1
        plan = self._plan
        rate = learning_rate(step, plan.num_steps, self._run.recipe.optim, steps_per_epoch=plan.steps_per_epoch)
        values = train_step(self._learner, batch, rate=rate)
        seconds = time.perf_counter() - began
        task, is_told = self._learner.task, step % self._loop.log_every_steps == 0 or step == plan.num_steps
        if step % plan.steps_per_epoch == 0 and isinstance(task, WatchedTask):
            values |= task.summarise_epoch(self._learner.module.module)
            is_told = True
        if log is not None and is_told:
            speed = sum(batch.num_rows) / seconds
            values |= {"lr": rate, "seconds": round(seconds, 6), "samples_per_s": round(speed, 1)}
            log.append(step=step, epoch=batch.epoch + 1, split="train", **values)
        self._progress = dataclasses.replace(self._progress, step=step)
        if self._is_evaluated(step):
            self._evaluate(batch.epoch, log)
        if self._is_saved(step):
            if log is not None:
                log.flush()  # rows up to a checkpoint are never lost: a resumed run starts behind them
            learner = self._learner
            self._checkpoints.save(learner.module, learner.optimizer, self._progress, average=learner.average)

    def _evaluate(self, epoch: int, log: MetricsLog | None) -> None:
        began, step = time.perf_counter(), self._progress.step
        plan = validation_plan(self._run.recipe, self._run.cohort)
        # Read here whatever feeds the training: the same few rows each time, which the reader keeps.
        found = validate(self._learner, stream_batches(plan, self._reader, self._team, feed="direct"))
        values = found.values
        require_finite(values, step=step)
        if log is not None:
            seconds = time.perf_counter() - began
            speed = len(plan.items) / seconds
            row = values | {"seconds": round(seconds, 6), "samples_per_s": round(speed, 1)}
            log.append(step=step, epoch=epoch + 1, split="val", **row)
        scores = {f"val_{name}": value for name, value in values.items()}
        # One rank decides: a difference in the last bit between machines must not make them part ways.
        self._progress = self._team.broadcast(
            weigh(
                self._progress,
                scores,
                checkpoint=self._checkpoints.name_at(step),
                config=self._loop,
                intervals=found.intervals,
            )
        )
        self._report(epoch, scores)

    def _is_evaluated(self, step: int) -> bool:
        epoch, within = divmod(step, self._plan.steps_per_epoch)
        return within == 0 and (epoch % self._loop.eval_every_epochs == 0 or step == self._plan.num_steps)

    def _is_saved(self, step: int) -> bool:
        is_end = step == self._plan.num_steps or self._progress.stopped_early
        return is_end or step % self._loop.checkpoint_every_steps == 0 or self._progress.best_step == step

    def _open_log(self) -> contextlib.AbstractContextManager[MetricsLog | None]:
        if not self._team.is_lead:
            return contextlib.nullcontext()
        return MetricsLog(self._run.folder, after_step=self._progress.step)

    def _export(self) -> None:
        recipe, cohort, best = self._run.recipe, self._run.cohort, self._progress.best_checkpoint
        task = recipe.task()
        module = TaskModule(task, task.build())
        averaged = recipe.optim.average_decay is not None
        load_model(self._run.folder.child(CHECKPOINTS), str(best), module, averaged=averaged)
        training: dict[str, Any] = {
            "recipe": recipe.name,
            "recipe_fingerprint": recipe.fingerprint(),
            "seed": recipe.seed,
            "catalogue_version": cohort.version,
            "split": recipe.split.to_json(),
            "split_counts": cohort.split.counts(),
            "num_steps": self._progress.step,
            "best_step": self._progress.best_step,
            "selected_by": recipe.loop.select_by,
            "val_scores": self._progress.best_scores,
            "intervals": self._progress.best_intervals,
        }
        task.export(module.module, cohort, self._run.folder.child(MODEL), training)

    def _report(self, epoch: int, scores: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES and self._progress.step < self._plan.num_steps:
            return
        self._last_line = now
        numbers = " ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self._say("epoch %d of %d: %s", epoch + 1, self._loop.num_epochs, numbers)

    def _say(self, text: str, *values: object) -> None:
        if self._team.is_lead:
            logger.info(text, *values)


def _build_learner(run: Run, team: Team) -> Learner:
    recipe = run.recipe
    task = recipe.task()
    module = task.build()
    task.calibrate(module, run.cohort)
    wrapped = TaskModule(task, module)
    shard(wrapped, task.blocks(module), team)
    undecayed = {f"module.{name}" for name in task.undecayed(module)}
    decay = recipe.optim.average_decay
    found = task.rivals(module) if isinstance(task, RivalTask) else ()
    rivals = tuple(dataclasses.replace(rival, prefix=f"module.{rival.prefix}") for rival in found)
    return Learner(
        recipe=recipe,
        task=task,
        module=wrapped,
        optimizer=build_optimizer(wrapped, recipe.optim, undecayed=undecayed, rivals=rivals),
        team=team,
        average=None if decay is None else WeightAverage(wrapped, decay),
        rivals=rivals,
    )
