"""Who is trained on, who selects and who judges: splits by family or person, stratified by label, kept in a file."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold

from neuroray.config import Config
from neuroray.errors import NeurorayError
from neuroray.platform.data.labels import LabelError, parse_condition, read_class, read_number, read_text
from neuroray.platform.data.plan import KeyedPermutation

_FORMAT = 1
_ONE_CLASS = "all"
_UNKNOWN = "unknown"
Side = Literal["train", "val", "test"]
SIDES: tuple[Side, ...] = ("train", "val", "test")


class SplitError(NeurorayError, ValueError):
    """A split that cannot be made: a class with too few people, labels that are no classes, parts that do not fit."""


class LabelledScan(Protocol):
    """What a split needs to know of a scan; labels are read by name (`diagnosis`, `sex`), or from `extra`."""

    @property
    def scan_id(self) -> str:
        """Key of the scan."""
        ...

    @property
    def subject(self) -> str:
        """Whose scan it is."""
        ...

    @property
    def family_id(self) -> str | None:
        """Whom the subject is related to."""
        ...

    @property
    def extra(self) -> Mapping[str, str]:
        """Further columns of the table of participants."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig(Config):
    """How a cohort is parted. The default is five folds of 80:10:10 whose test sets share nobody.

    Attributes:
        num_parts: Parts into which the cohort is dealt; fold k starts at part `k * (num_parts // num_folds)`.
        test_parts: Parts held out for the final judgement. With `test_parts == num_parts // num_folds` the folds
            together test everybody exactly once.
        val_parts: The parts after those, for selection.
        num_folds: How many folds there are.
        fold: Which of them this is.
        seed: Deals people into parts.
        stratify_by: The label whose classes every part should hold in equal shares; None: groups only.
        num_bins: For a label that is a measure: classes of it, made of equally many neighbours by rank; None: it has
            classes already.
        keep_unlabelled: Deal scans without the label too, as a class of their own, instead of leaving them out.
        shuffle_labels_seed: A control experiment: labels are dealt anew among people, so there is nothing to learn.
        hold_out: `people` deals people into parts; `site` makes everybody of one site the test side of a fold, the
            sites in order of name, of which there must be `num_folds`. People who were scanned at that site and at
            another, or whose relatives were, are left out of the other sides.
        learn_from: As diagnosis=control: only these are trained and selected on, while everybody of the test side is
            judged. What a brain age gap of patients needs; others of those two sides are left out.
    """

    num_parts: int = 10
    test_parts: int = 1
    val_parts: int = 1
    num_folds: int = 5
    fold: int = 0
    seed: int = 0
    stratify_by: str | None = "diagnosis"
    num_bins: int | None = None
    keep_unlabelled: bool = False
    shuffle_labels_seed: int | None = None
    hold_out: Literal["people", "site"] = "people"
    learn_from: str | None = None

    def __post_init__(self) -> None:
        if min(self.test_parts, self.val_parts, self.num_folds) < 1:
            raise SplitError("a split needs parts to test on and to select on, and a fold", given=self.to_json())
        if self.test_parts + self.val_parts >= self.num_parts:
            raise SplitError("no part is left to train on", given=self.to_json(), fix="raise num_parts")
        if self.hold_out == "people" and self.num_folds * self.test_parts > self.num_parts:
            raise SplitError(
                "the tests of the folds would overlap",
                given=f"{self.num_folds} folds of {self.test_parts} parts",
                expected=f"at most {self.num_parts} parts in all",
            )
        if self.num_bins is not None and (self.num_bins < 1 or self.stratify_by is None):
            raise SplitError(
                "a measure is cut into bins of neighbours",
                given=f"num_bins {self.num_bins} of {self.stratify_by}",
                expected="1 or more, of a label that stratify_by names",
            )
        if not 0 <= self.fold < self.num_folds:
            raise SplitError("no such fold", given=self.fold, expected=f"0 to {self.num_folds - 1}")
        if self.learn_from is not None:
            try:
                parse_condition(self.learn_from)
            except LabelError as fault:
                raise SplitError(fault.fault, given=fault.given, expected=fault.expected) from fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The scans of one fold, by id and in sorted order, and the labels with which they were dealt.

    Attributes:
        left_out: Scans on no side: without a label, or not to be learned from.
        labels: The class, or number, of every scan on a side that has one; shuffled, where the configuration says so.
        bins: For a label that is a measure, or not known of everybody: as what each scan was dealt.
        catalogue_version: Of the store that the records came from; None where it was not given.
    """

    config: SplitConfig
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    labels: dict[str, str]
    bins: dict[str, str] = field(default_factory=dict)
    catalogue_version: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, sorted: a model's outputs follow this order; none where the label is a measure."""
        return () if self.config.num_bins is not None else tuple(sorted(set(self.labels.values())))

    @property
    def dealt_as(self) -> Mapping[str, str]:
        """Of every scan the class, or the bin, of which each side has its share."""
        return self.bins or self.labels

    def side(self, name: Side) -> tuple[str, ...]:
        """The scans of one side."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def tell_left_out(self, what: str) -> list[str]:
        """A sentence for each reason for which scans are on no side.

        Args:
            what: Name of the label.
        """
        labelled = sum(scan_id in self.labels for scan_id in self.left_out)
        why = "are of no known site, or of people (or relatives of people) who are judged at another"
        if self.config.learn_from:
            why = f"are not learned from ({self.config.learn_from})"
        told = {f"have no {what}": len(self.left_out) - labelled, why: labelled}
        return [f"{number} scans {reason} and are left out" for reason, number in told.items() if number]

    def counts(self) -> dict[str, dict[str, int]]:
        """Scans per class, or per bin of a measure, for each side."""
        dealt = self.dealt_as
        names = sorted(set(dealt.values()))
        tallies = {side: Counter(dealt[scan_id] for scan_id in self.side(side)) for side in SIDES}
        return {side: {name: tally[name] for name in names} for side, tally in tallies.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it, with the counts for a reader's eye."""
        return {
            "format": _FORMAT,
            "config": self.config.to_json(),
            "catalogue_version": self.catalogue_version,
            "counts": self.counts(),
            **{side: list(self.side(side)) for side in SIDES},
            "left_out": list(self.left_out),
            "labels": dict(sorted(self.labels.items())),
            **({"bins": dict(sorted(self.bins.items()))} if self.bins else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            SplitError: another format, a missing field, or a scan that is on two sides.
        """
        if data.get("format") != _FORMAT:
            raise SplitError("a split file of another format", given=data.get("format"), expected=_FORMAT)
        missing = sorted({"config", "left_out", "labels", *SIDES} - set(data))
        if missing:
            raise SplitError(f"a split file without {', '.join(missing)}", given=sorted(data))
        sides = {side: tuple(data[side]) for side in (*SIDES, "left_out")}
        twice = [scan_id for scan_id, count in Counter(sum(sides.values(), ())).items() if count > 1]
        if twice:
            raise SplitError("a split file with a scan on two sides", given=f"{len(twice)} such scans")
        config = SplitConfig.from_json(data["config"])
        return cls(
            config=config,
            labels=data["labels"],
            bins=data.get("bins", {}),
            catalogue_version=data.get("catalogue_version"),
            **sides,
        )

    def write_json(self, path: Path) -> None:
        """Writes `to_json` as indented text."""
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def read_json(cls, path: Path) -> Self:
        """Reads what `write_json` wrote."""
        return cls.from_json(json.loads(path.read_text()))


def split_subjects(
    records: Iterable[LabelledScan], config: SplitConfig, *, catalogue_version: int | None = None
) -> Split:
    """Deals scans into train, val and test so that no person, and no family, is on two sides.

    The order of the records does not matter. Scans whose label is missing are left out, and listed. Dealing is done by
    scikit-learn's `StratifiedGroupKFold`.

    Raises:
        SplitError: a class with fewer families or people than parts, a label that is no class, a side without a class.
    """
    ordered = sorted(records, key=lambda record: record.scan_id)
    _refuse_twice(ordered)
    labels = _read_labels(ordered, config)
    if config.shuffle_labels_seed is not None:
        labelled = [record for record in ordered if record.scan_id in labels]
        labels = _shuffle_labels(labelled, labels, config.shuffle_labels_seed)
    bins = _cut_into_bins(labels, config.num_bins) if config.num_bins is not None else {}
    left_out = [record.scan_id for record in ordered if record.scan_id not in labels]
    if config.keep_unlabelled and left_out:
        bins = {**(bins or labels), **dict.fromkeys(left_out, _UNKNOWN)}
        left_out = []
    groups = dict(zip((record.scan_id for record in ordered), _groups(ordered), strict=True))
    if config.hold_out == "site":
        sides, homeless = _hold_site_out(ordered, bins or labels, groups, config)
        left_out = sorted([*left_out, *homeless])
    else:
        sides = _sides_of(_deal(bins or labels, groups, config), config)
    if config.learn_from is not None:
        sides, others = _keep_learners(ordered, sides, config.learn_from)
        left_out = sorted([*left_out, *others])
    split = Split(
        config=config,
        **sides,
        left_out=tuple(left_out),
        labels=labels,
        bins=bins,
        catalogue_version=catalogue_version,
    )
    _refuse_missing_class(split)
    return split


def _refuse_twice(ordered: Sequence[LabelledScan]) -> None:
    twice = len(ordered) - len({record.scan_id for record in ordered})
    if twice:
        raise SplitError("a scan is listed twice", given=f"{twice} repeated scan ids", fix="pass each record once")


def _read_labels(ordered: Sequence[LabelledScan], config: SplitConfig) -> dict[str, str]:
    """The labels that are known, by scan, as text."""
    name = config.stratify_by
    if name is None:
        return {record.scan_id: _ONE_CLASS for record in ordered}
    read = read_class if config.num_bins is None else read_number
    try:
        found = {record.scan_id: read(record, name) for record in ordered}
    except LabelError as fault:
        raise SplitError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from fault
    labels = {scan_id: str(value) for scan_id, value in found.items() if value is not None}
    if not labels:
        raise SplitError(f"no scan has the label {name}", given=f"{len(ordered)} scans", fix="check participants.tsv")
    return labels


def _cut_into_bins(labels: Mapping[str, str], num_bins: int) -> dict[str, str]:
    """Neighbours by rank; who is equal is in the same bin, and who is on which side plays no part."""
    ranks = rankdata([float(text) for text in labels.values()], method="average")
    numbers = np.minimum(((ranks - 0.5) / len(labels) * num_bins).astype(int), num_bins - 1)
    width = len(str(num_bins))
    return {
        scan_id: f"bin {number + 1:0{width}d} of {num_bins}"
        for scan_id, number in zip(labels, numbers.tolist(), strict=True)
    }


def _groups(records: Sequence[LabelledScan]) -> list[str]:
    """For each record the name of its group: the scans linked by a common subject or family, over any chain."""
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while leader.setdefault(node, node) != node:
            node = leader[node]
        return node

    for record in records:
        subject, family = ("subject", record.subject), ("family", record.family_id or "")
        first, second = sorted((find(subject), find(family if record.family_id else subject)))
        leader[second] = first  # the lesser name leads, so that names do not depend on the order of the records
    return [":".join(find(("subject", record.subject))) for record in records]


def _deal(labels: Mapping[str, str], groups: Mapping[str, str], config: SplitConfig) -> list[list[str]]:
    """The labelled scans, by id, of each part."""
    scan_ids = np.array(list(labels))
    classes = np.array([labels[scan_id] for scan_id in labels])
    families = np.array([groups[scan_id] for scan_id in labels])
    _refuse_small_class(families, classes, config)
    dealer = StratifiedGroupKFold(n_splits=config.num_parts, shuffle=True, random_state=config.seed)
    with warnings.catch_warnings():
        # Of classes smaller than the number of parts; that is refused above, or said of those without the label.
        warnings.filterwarnings("ignore", message="The least populated class")
        return [scan_ids[chosen].tolist() for _, chosen in dealer.split(scan_ids, classes, families)]


def _refuse_small_class(groups: np.ndarray, classes: np.ndarray, config: SplitConfig) -> None:
    fewer_bins = "" if config.num_bins is None else ", take fewer num_bins"
    for name in np.unique(classes):
        num_groups = len(np.unique(groups[classes == name]))
        # Of those without the label, no part needs its share.
        if num_groups < config.num_parts and name != _UNKNOWN:
            raise SplitError(
                f"class {name} of {config.stratify_by} has too few people or families to be in every part",
                given=f"{num_groups} in {config.num_parts} parts",
                expected=f"at least {config.num_parts}",
                fix=f"lower num_parts to {num_groups} or less{fewer_bins}, or gather more",
            )


def _sides_of(parts: Sequence[Sequence[str]], config: SplitConfig) -> dict[Side, tuple[str, ...]]:
    first = config.fold * (config.num_parts // config.num_folds)
    turned = [parts[(first + offset) % config.num_parts] for offset in range(config.num_parts)]
    until = config.test_parts + config.val_parts
    chosen: dict[Side, Sequence[Sequence[str]]] = {
        "test": turned[: config.test_parts],
        "val": turned[config.test_parts : until],
        "train": turned[until:],
    }
    return {side: tuple(sorted(scan_id for part in some for scan_id in part)) for side, some in chosen.items()}


def _hold_site_out(
    ordered: Sequence[LabelledScan], dealt_as: Mapping[str, str], groups: Mapping[str, str], config: SplitConfig
) -> tuple[dict[Side, tuple[str, ...]], list[str]]:
    """The fold's site as the test side, the other sites dealt into the two others; and who is on none."""
    sites = {record.scan_id: str(site) for record in ordered if (site := getattr(record, "site", None))}
    names = sorted({site for scan_id, site in sites.items() if scan_id in dealt_as})
    if len(names) != config.num_folds or len(names) < 2:
        raise SplitError(
            "a fold holds out a site: there must be as many folds as sites, and two or more",
            given=f"num_folds {config.num_folds}, sites {', '.join(names) or 'none'}",
            fix=f"num_folds {len(names)}" if len(names) > 1 else "hold_out people",
        )
    test = [scan_id for scan_id in dealt_as if sites.get(scan_id) == names[config.fold]]
    judged = {groups[scan_id] for scan_id in test}
    rest = {scan_id: name for scan_id, name in dealt_as.items() if scan_id in sites and groups[scan_id] not in judged}
    parts = _deal(rest, groups, config)
    sides: dict[Side, tuple[str, ...]] = {
        "test": tuple(sorted(test)),
        "val": tuple(sorted(scan_id for part in parts[: config.val_parts] for scan_id in part)),
        "train": tuple(sorted(scan_id for part in parts[config.val_parts :] for scan_id in part)),
    }
    return sides, [scan_id for scan_id in dealt_as if scan_id not in rest and scan_id not in sides["test"]]


def _keep_learners(
    ordered: Sequence[LabelledScan], sides: Mapping[Side, tuple[str, ...]], condition: str
) -> tuple[dict[Side, tuple[str, ...]], list[str]]:
    """The sides with nobody to learn from but those of the condition, and who is thereby on none."""
    column, wanted = parse_condition(condition)
    learners = {record.scan_id for record in ordered if read_text(record, column) == wanted}
    kept: dict[Side, tuple[str, ...]] = {
        side: ids if side == "test" else tuple(one for one in ids if one in learners) for side, ids in sides.items()
    }
    empty = [side for side, ids in kept.items() if not ids]
    if empty:
        values = sorted({read_text(record, column) or "unknown" for record in ordered})
        raise SplitError(
            f"nobody on the {' and '.join(empty)} side is {condition}",
            given=f"{column}: {', '.join(values[:8])}",
            fix="name a column and a value of the store: --split.learn-from diagnosis=control",
        )
    return kept, [one for side, ids in sides.items() for one in ids if one not in kept[side]]


def _refuse_missing_class(split: Split) -> None:
    for side, counts in split.counts().items():
        if side == "test" and split.config.hold_out == "site":
            continue  # a site has the people whom it has
        missing = [name for name, count in counts.items() if count == 0 and name != _UNKNOWN]
        if missing:
            raise SplitError(
                f"the {side} side has nobody of class {', '.join(missing)}",
                given=counts,
                fix="lower num_parts, try another seed, or gather more",
            )


def _shuffle_labels(records: Sequence[LabelledScan], labels: Mapping[str, str], seed: int) -> dict[str, str]:
    """Deals the people's labels out again among the people; all scans of one person get the same."""
    own: dict[str, Counter[str]] = {}
    for record in records:
        own.setdefault(record.subject, Counter())[labels[record.scan_id]] += 1
    subjects = sorted(own)
    # A person whose label changed between scans counts with the more frequent one, the first by name where they tie.
    hand = [min(own[subject], key=lambda name: (-own[subject][name], name)) for subject in subjects]
    order = KeyedPermutation(len(subjects), "labels", seed)
    dealt = {subject: hand[order[index]] for index, subject in enumerate(subjects)}
    return {record.scan_id: dealt[record.subject] for record in records}
