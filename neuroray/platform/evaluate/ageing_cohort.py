"""Whose pairs of visits a model of brains at other ages is judged on: its split's test people, or another cohort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuroray.platform.evaluate.external import check_strangers, find_trained
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.run import RunFold, check_people, open_run_store
from neuroray.platform.evaluate.visits import VisitPair, pair_records
from neuroray.storage.faults import StoreError
from neuroray.storage.profiles.agreement import require_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeingCohort:
    """Who is judged, and where those are who were learned from.

    Attributes:
        store: Of the scans judged.
        pairs: Of each fold, in the order of the folds.
        training: The store of the training people's scans; None where it is out of reach.
        records: Scans of that store by id.
        is_external: Whether those judged are another cohort, which the models of all folds are judged on.
        notes: What is to be known of them.
    """

    store: ScanStore
    pairs: tuple[tuple[VisitPair, ...], ...]
    training: ScanStore | None
    records: Mapping[str, ScanRecord]
    is_external: bool = False
    notes: tuple[str, ...] = ()

    def find_pairs(self) -> list[VisitPair]:
        """All of them, each once."""
        pairs = {(pair.previous.scan_id, pair.target.scan_id): pair for some in self.pairs for pair in some}
        return list(pairs.values())

    def select_side(self, fold: RunFold, side: str) -> list[ScanRecord]:
        """Scans of the training's or the validation people of a fold that are there."""
        names = {"train": fold.split.train, "val": fold.split.val}[side]
        return [self.records[scan_id] for scan_id in names if scan_id in self.records]


def gather_held_out(folds: Sequence[RunFold], store: str | None, *, backward: bool) -> AgeingCohort:
    """The test people of each fold.

    Args:
        folds: With scans in place of pairs.
        store: Where the scans are; where the run found them when left out.
        backward: The older scan is given.

    Raises:
        EvaluationError: people or families on two sides, or a fold in which nobody has two visits.
        ProfileError: scans that were prepared otherwise than those of the training.
        StoreError: there is no such store.
    """
    opened = open_run_store(folds[0], store)
    records = {record.scan_id: record for record in opened.records()}
    pairs = []
    for fold in folds:
        check_people(fold, records)
        found = pair_records([records[scan_id] for scan_id in fold.split.test], backward=backward)
        if not found:
            raise EvaluationError(
                f"nobody on the test side of {fold.path} has two visits at different ages",
                given=f"{len(fold.split.test)} scans",
                expected="pairs of visits",
            )
        pairs.append(tuple(found))
    return AgeingCohort(store=opened, pairs=tuple(pairs), training=opened, records=records)


def gather_strangers(folds: Sequence[RunFold], store: str | None, *, backward: bool) -> AgeingCohort:
    """Everybody in another store who has two visits at ages that the training of every fold has seen.

    Pairs with another age are left out and counted, as `neuroray generate` refuses such ages.

    Args:
        folds: With scans in place of pairs.
        store: The other cohort.
        backward: The older scan is given.

    Raises:
        EvaluationError: no store is named, scans that the run was trained on, nobody with two visits, nobody at the
            training's ages.
        ProfileError: scans that were prepared otherwise than those of the training.
        StoreError: there is no such store.
    """
    if store is None:
        raise EvaluationError("no other cohort is named", fix="--store OTHER --external")
    opened = ScanStore(store)
    opened = ScanStore(store, version=opened.version)
    modality = folds[0].card["modality"]
    scans = [record for record in opened.records() if record.modality == modality]
    pairs = pair_records(scans, backward=backward)
    if not pairs:
        raise EvaluationError(
            f"nobody in {store} has two visits at different ages",
            given=f"{len(scans)} scans of {modality}, {sum(one.age_years is not None for one in scans)} with an age",
            expected="pairs of visits",
        )
    visited = _list_scans(pairs)
    for fold in folds:
        require_profile(visited, fold.card)
    caveats = check_strangers(visited, find_trained(folds))
    kept = _keep_ages(pairs, folds, store)
    training, records = _open_training(folds[0])
    return AgeingCohort(
        store=opened,
        pairs=(tuple(kept),) * len(folds),
        training=training,
        records=records,
        is_external=True,
        notes=(*caveats, *_note_unseen(pairs, kept, folds)),
    )


def _keep_ages(pairs: Sequence[VisitPair], folds: Sequence[RunFold], store: str) -> list[VisitPair]:
    low, high = _find_ages(folds)
    kept = [pair for pair in pairs if all(low <= age <= high for age in pair.ages_years)]
    if not kept:
        ages = [age for pair in pairs for age in pair.ages_years]
        raise EvaluationError(
            f"no two visits in {store} are at ages that the training has seen",
            given=f"{len(pairs)} pairs, at {min(ages):g} to {max(ages):g} years",
            expected=f"{low:g} to {high:g} years",
            fix="a model of such ages",
        )
    return kept


def _find_ages(folds: Sequence[RunFold]) -> tuple[float, float]:
    """Ages that every fold has seen."""
    ranges = [fold.card["age_range_years"] for fold in folds]
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _note_unseen(pairs: Sequence[VisitPair], kept: Sequence[VisitPair], folds: Sequence[RunFold]) -> list[str]:
    """What of the other cohort the training has not seen, in words and numbers."""
    notes, (low, high) = [], _find_ages(folds)
    if len(kept) < len(pairs):
        people = len({pair.previous.subject for pair in pairs} - {pair.previous.subject for pair in kept})
        notes.append(
            f"{len(pairs) - len(kept)} of {len(pairs)} pairs, and with them {people} people, are left out: their ages "
            f"are not within the {low:g} to {high:g} years of the training."
        )
    ranges = [fold.card["gap_range_years"] for fold in folds]
    shortest, longest = max(first for first, _ in ranges), min(last for _, last in ranges)
    far = sum(not min(shortest, 0) <= pair.gap_years <= max(longest, 0) for pair in kept)
    if far:
        notes.append(f"{far} pairs are further apart than those of the training ({shortest:+g} to {longest:+g} years).")
    learned = {name.casefold() for fold in folds for name in fold.card.get("diagnoses") or {}} - {""}
    strange = {one.subject for one in _list_scans(kept) if one.diagnosis and one.diagnosis.casefold() not in learned}
    if learned and strange:
        notes.append(f"{len(strange)} people have a diagnosis that nobody of the training has.")
    return notes


def _list_scans(pairs: Iterable[VisitPair]) -> list[ScanRecord]:
    scans = {record.scan_id: record for pair in pairs for record in (pair.previous, pair.target)}
    return [scans[scan_id] for scan_id in sorted(scans)]


def _open_training(fold: RunFold) -> tuple[ScanStore | None, dict[str, ScanRecord]]:
    if fold.store is None:
        return None, {}
    try:
        opened = ScanStore(fold.store, version=fold.catalogue_version)
        return opened, {record.scan_id: record for record in opened.records()}
    except StoreError:
        return None, {}
