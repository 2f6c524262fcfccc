"""Everything that one fold's held-out people are judged by: the model, what stands beside it, and what measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from neuroray.platform.baselines.brain_change import fit_latent_change, fit_population_change
from neuroray.platform.baselines.latent_diffusion import LatentDiffusionConfig, fit_latent_diffusion
from neuroray.platform.evaluate.ageing_cohort import AgeingCohort
from neuroray.platform.evaluate.ageing_evidence import CEILING, COPY, REAL, JudgedPair
from neuroray.platform.evaluate.ageing_rows import AgeTeller, ModelTeller, Told, decode_visit
from neuroray.platform.evaluate.ageing_sweep import SweptPerson, choose_ages, sweep_person
from neuroray.platform.evaluate.brain_regions import RegionMaps, map_regions
from neuroray.platform.evaluate.generated_ages import PREVIOUS, TARGET, AgeReader, fit_ridge_age, load_run_age
from neuroray.platform.evaluate.image_quality import compare_volumes
from neuroray.platform.evaluate.labelled_regions import LabelMeter, Places
from neuroray.platform.evaluate.perceptual import PERCEPTUAL, PerceptualMeter
from neuroray.platform.evaluate.run import RunFold
from neuroray.platform.evaluate.visits import Visit, VisitPair, VisitReader, pair_records, place_grid
from neuroray.platform.generate.ageing_model import AgeingModel, load_ageing_model
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.profiles.profile import IN_TEMPLATE
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeingOptions:
    """What is to be judged, and how.

    Attributes:
        backward: Give the older scan and tell the younger, in place of the other way round.
        baselines: Fit the training people's mean change, in voxels and in latent space, as further rows.
        diffusion: Train a small latent diffusion besides.
        age_model: A run that tells age from volumes; None: a regression that is fitted here.
        downstream: Also train a regression of age on real scans, and on real and generated ones.
        perceptual: Measures the perceptual distance; None: it is left out.
        label_maps: A folder of label maps of held-out scans; None: regions are told from values alone.
        pictures: Draw strips of some pairs.
        device: Where to compute.
        seed: Of regressions, and of the ages that are generated for them.
    """

    backward: bool = False
    baselines: bool = True
    diffusion: bool = False
    age_model: str | None = None
    downstream: bool = False
    perceptual: PerceptualMeter | None = None
    label_maps: str | None = None
    pictures: bool = True
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMeter:
    """Volumes of regions in ml of the person's own space: registration to a template has stretched each brain alike.

    Attributes:
        store: Knows how each scan was brought to the template.
        in_template: Whether scans were.
        stretch: By scan, kept: volume in the template over volume in the person's own space.
    """

    store: ScanStore
    in_template: bool
    stretch: dict[str, float] = field(default_factory=dict)

    def maps(self, visit: Visit) -> RegionMaps:
        """Where regions are on the grid of this scan."""
        x, y, z = visit.volume.shape
        affine = tuple(place_grid(visit.record, (x, y, z)).ravel().tolist())
        # Without places the affine changes nothing, and grids of native scans all differ.
        return map_regions((x, y, z), affine if self.in_template else (), in_template=self.in_template)

    def __call__(
        self, volume: np.ndarray, brain: np.ndarray, visit: Visit, places: Places | None = None
    ) -> dict[str, float]:
        """Of a volume in the space of this visit; at these places too."""
        affine = np.array(visit.record.affine).reshape(4, 4)
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000 / self._stretch(visit.record.scan_id)
        maps = self.maps(visit)
        if places:
            maps = dataclasses.replace(maps, places={**maps.places, **places})
        return maps.measure(volume, brain, voxel_ml=voxel_ml)

    def _stretch(self, scan_id: str) -> float:
        if scan_id not in self.stretch:
            found = self.store.read_to_template(scan_id)
            self.stretch[scan_id] = 1.0 if found is None else abs(float(np.linalg.det(found.affine[:3, :3])))
        return self.stretch[scan_id]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One fold, ready to judge.

    Attributes:
        fold: With scans in place of pairs.
        model: Its model.
        read: Reads and encodes the scans judged.
        read_train: The same of the training people's; None where they are out of reach.
        tellers: The model first, then the baselines.
        measure: Of regions.
        age_reader: None where none could be had.
        train: Scans of the training people with an age; none where they are out of reach.
        pairs: Judged.
        perceptual: Measures the perceptual distance; None: it is left out.
        labels: Label maps of held-out scans; None: there are none.
    """

    fold: RunFold
    model: AgeingModel
    read: VisitReader
    read_train: VisitReader | None
    tellers: tuple[AgeTeller, ...]
    measure: RegionMeter
    age_reader: AgeReader | None
    train: tuple[ScanRecord, ...]
    pairs: tuple[VisitPair, ...]
    perceptual: PerceptualMeter | None = None
    labels: LabelMeter | None = None

    def judge(self, pair: VisitPair) -> JudgedPair:
        """Every row on one pair."""
        previous, target = self.read(pair.previous), self.read(pair.target)
        rows = self.tell(previous, target)
        places = {} if self.labels is None else self.labels.places(previous, target)
        measured = {"previous": self.measure(previous.volume, previous.brain, previous, places)}
        measured["target"] = self.measure(target.volume, target.brain, target, places)
        changes = {REAL: {region: measured["target"][region] - measured["previous"][region] for region in places}}
        for name, told in rows.items():
            # The ceiling is the follow-up itself: its own brain, and its own way to the template.
            visit = target if name == CEILING else previous
            start = self.measure(told.start, previous.brain, previous, places)
            measured[name] = self.measure(told.volume, visit.brain, visit, places)
            changes[name] = {region: value - start[region] for region, value in measured[name].items()}
        if self.labels is not None:
            measured[REAL] = {}
            self.labels.anchor(pair, measured, changes)
        ages, starts = self._read_ages(rows, previous, target)
        return JudgedPair(
            fold=self.fold.index,
            pair=pair,
            scores={name: judge_row(told, previous, target, self.perceptual) for name, told in rows.items()},
            volumes_ml=measured,
            changes_ml=changes,
            predicted_ages_years=ages,
            predicted_starts_years=starts,
        )

    def tell(self, previous: Visit, target: Visit) -> dict[str, Told]:
        """All rows of the table, in its order."""
        rebuilt = decode_visit(self.model, previous)
        copied = Told(volume=previous.volume, start=previous.volume, tokens=previous.tokens)
        ceiling = Told(volume=decode_visit(self.model, target), start=rebuilt, tokens=target.tokens)
        told = {teller.name: teller.tell(previous, target.age_years) for teller in self.tellers}
        return {COPY: copied, CEILING: ceiling, **told}

    def sweep(self, record: ScanRecord) -> SweptPerson | None:
        """One person at rising ages; None where the ages of the training end."""
        ages = choose_ages(float(record.age_years or 0), self.model.card)
        if not ages:
            return None
        visit = self.read(record)
        return sweep_person(
            visit,
            ages,
            self.tellers[0],
            group=VisitPair(previous=record, target=record).group,
            reconstruction=decode_visit(self.model, visit),
            measure=self.measure,
            read_age=None if self.age_reader is None else self.age_reader.read,
        )

    def _read_ages(
        self, rows: Mapping[str, Told], previous: Visit, target: Visit
    ) -> tuple[dict[str, float], dict[str, float]]:
        if self.age_reader is None:
            return {}, {}
        read = self.age_reader.read
        real = {PREVIOUS: read(previous.volume, previous), TARGET: read(target.volume, target)}
        told = {name: read(one.volume, target if name == CEILING else previous) for name, one in rows.items()}
        return real | told, {name: read(one.start, previous) for name, one in rows.items()}


def set_up(
    fold: RunFold,
    cohort: AgeingCohort,
    pairs: tuple[VisitPair, ...],
    options: AgeingOptions,
    labels: LabelMeter | None = None,
) -> Bench:
    """Loads the model and fits what stands beside it, on the training people alone.

    Args:
        fold: With scans in place of pairs.
        cohort: Where all scans are.
        pairs: To be judged.
        options: What is judged.
        labels: Label maps of the scans judged.

    Raises:
        GenerationError: no model that tells brains.
        EvaluationError: an age model that tells no age, or was trained otherwise.
        StoreError: training scans that cannot be read.
    """
    model = load_ageing_model(str(fold.path), device=options.device)
    read = read_train = VisitReader(cohort.store, model.tokenizer, model.grid)
    if cohort.is_external:
        read_train = cohort.training and VisitReader(cohort.training, model.tokenizer, model.grid)
    train = tuple(record for record in cohort.select_side(fold, "train") if record.age_years is not None)
    beside = [] if read_train is None else _fit_baselines(model, read_train, train, options)
    return Bench(
        fold=fold,
        model=model,
        read=read,
        read_train=read_train,
        tellers=(ModelTeller(model), *beside),
        measure=RegionMeter(store=cohort.store, in_template=read_model_profile(model.card).name in IN_TEMPLATE),
        age_reader=_find_age_reader(model, read_train, train, options),
        train=train,
        pairs=pairs,
        perceptual=options.perceptual,
        labels=labels,
    )


def judge_row(
    told: Told, previous: Visit, target: Visit, perceptual: PerceptualMeter | None = None
) -> dict[str, float]:
    """How near a row came to the follow-up: the image, and where it has any, its tokens."""
    scores = compare_volumes(told.volume, target.volume, target.brain)
    if perceptual is not None:
        scores[PERCEPTUAL] = perceptual.measure(told.volume, target.volume, target.brain)
    if told.tokens is None:
        return scores
    right, changed = told.tokens == target.tokens, previous.tokens != target.tokens
    of_changed = float(right[changed].float().mean()) if bool(changed.any()) else float("nan")
    return scores | {"token_accuracy": float(right.float().mean()), "changed_token_accuracy": of_changed}


def first_visits(pairs: Iterable[VisitPair]) -> list[ScanRecord]:
    """The youngest scan of everybody in these pairs, by scans."""
    youngest: dict[str, ScanRecord] = {}
    for record in chain.from_iterable((pair.previous, pair.target) for pair in pairs):
        known = youngest.get(record.subject)
        if known is None or (record.age_years or 0) < (known.age_years or 0):
            youngest[record.subject] = record
    return sorted(youngest.values(), key=lambda one: one.scan_id)


def _fit_baselines(
    model: AgeingModel, read: VisitReader, train: Sequence[ScanRecord], options: AgeingOptions
) -> list[AgeTeller]:
    pairs = pair_records(train, backward=False)
    if not options.baselines or not pairs:
        return []
    plain = [fit_population_change(pairs, read), fit_latent_change(pairs, read, model.tokenizer)]
    if not options.diffusion:
        return plain
    config = LatentDiffusionConfig(seed=options.seed)
    return [*plain, fit_latent_diffusion(pairs, read, model.tokenizer, config)]


def _find_age_reader(
    model: AgeingModel, read: VisitReader | None, train: Sequence[ScanRecord], options: AgeingOptions
) -> AgeReader | None:
    if options.age_model is not None:
        return load_run_age(options.age_model, model.card, device=options.device)
    return None if read is None else fit_ridge_age([read(record) for record in train], seed=options.seed)
