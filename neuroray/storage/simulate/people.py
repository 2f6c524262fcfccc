"""Who is in the cohort: people in matched blocks, their families, visits and hidden truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neuroray.config import Config
from neuroray.storage.simulate.sites import SITES
from neuroray.storage.simulate.streams import Stream, open_stream
from neuroray.storage.simulate.template import SimulationError

Modality = Literal["T1w", "bold"]

_BLOCK = 4  # two matched pairs, each of a control and a person with the disease; each group has one woman and one man
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_FAMILY_CHANCE = 0.35  # of a block to hold two siblings
_SIBLING_CORRELATION = 0.5
_DISEASE_GAP_YEARS = 5.0  # how much older a brain looks at severity 1
_PROGRESSION_PER_YEAR = 0.05  # of severity


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortConfig(Config):
    """What decides every voxel of a cohort.

    Attributes:
        num_subjects: People; those of a smaller cohort are the first of a larger one with the same seed.
        seed: Of all random draws.
        modalities: Which scans everybody has.
        spacing_mm: Voxel size of T1w scans (one site has slices a fifth thicker).
        bold_spacing_mm: Voxel size of BOLD scans.
        num_frames: Frames of a BOLD run.
        longitudinal_fraction: Part of the people who come a second time, years later.
        min_age_years: Youngest age at the first visit.
        max_age_years: Oldest age at the first visit.
        disease_effect: Scales the atrophy of the disease; 0 plants none.
        coupling_effect: Scales what sex and cognition do to the coupling of networks; 0 plants none.
        head: Whether skull and scalp are there; without, scans look skull-stripped.
        registered: T1w scans as preprocessing leaves them: every head straight and of the template's size, on the
            template's grid, without shading.
    """

    num_subjects: int
    seed: int = 0
    modalities: tuple[Modality, ...] = ("T1w",)
    spacing_mm: float = 2.0
    bold_spacing_mm: float = 4.0
    num_frames: int = 64
    longitudinal_fraction: float = 0.25
    min_age_years: float = 20.0
    max_age_years: float = 85.0
    disease_effect: float = 1.0
    coupling_effect: float = 1.0
    head: bool = True
    registered: bool = False

    def __post_init__(self) -> None:
        _require(self.num_subjects >= 1, "a cohort has at least one person", self.num_subjects)
        _require(self.seed >= 0, "a seed is not negative", self.seed)
        _require(len(self.modalities) > 0, "a cohort has at least one modality", self.modalities)
        _require(len(set(self.modalities)) == len(self.modalities), "each modality is named once", self.modalities)
        for spacing in (self.spacing_mm, self.bold_spacing_mm):
            _require(1.0 <= spacing <= 16.0, "the spacing lies within 1 to 16 mm (the template has 1 mm)", spacing)
        _require(self.num_frames >= 2, "a BOLD run has at least two frames", self.num_frames)
        _require(0 <= self.longitudinal_fraction <= 1, "a fraction lies within 0 to 1", self.longitudinal_fraction)
        ages = (self.min_age_years, self.max_age_years)
        _require(18 <= ages[0] <= ages[1] <= 90, "ages lie within 18 to 90 years, the youngest first", ages)
        effects = (self.disease_effect, self.coupling_effect)
        _require(all(0 <= effect <= 1.5 for effect in effects), "effects lie within 0 to 1.5", effects)
        only_pictures = not self.registered or self.modalities == ("T1w",)
        _require(only_pictures, "registered scans are T1w scans, no runs", self.modalities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One simulated person: what the tables say, and what only the ground truth knows.

    Attributes:
        index: Place in the cohort, from 0; picks the person's random streams.
        age_years: At the first visit.
        cognition: Score with mean 100 and standard deviation 15, independent of age, sex and diagnosis.
        family_index: Index of the family's first member; picks the stream of what siblings share.
        site_index: Into `sites.SITES`.
        visit_ages_years: Age at each visit, one or two.
        severity: Of the disease at the first visit; 0 for controls.
        pace: Years that the brain ages per year.
        brain_age_offset_years: Of this brain at the first visit, beyond what the disease adds.
        scales: Stretch of the template along x, y, z.
        ventricle_offset: Added to the strength of ventricular growth; not due to age.
        cortex_offset: Added to the strength of cortical thinning; not due to age.
    """

    index: int
    age_years: float
    sex: Literal["M", "F"]
    diagnosis: Literal["control", "disease"]
    cognition: int
    family_index: int
    site_index: int
    visit_ages_years: tuple[float, ...]
    severity: float
    pace: float
    brain_age_offset_years: float
    scales: tuple[float, float, float]
    ventricle_offset: float
    cortex_offset: float

    @property
    def subject(self) -> str:
        """BIDS label without the prefix."""
        return f"{self.index + 1:04d}"

    @property
    def family_id(self) -> str:
        """The same for siblings."""
        return f"fam-{self.family_index + 1:04d}"

    @property
    def site(self) -> str:
        """Name of the scanner's site."""
        return SITES[self.site_index].name

    def session(self, visit_index: int) -> str | None:
        """BIDS session label; None for those who came once."""
        return f"{visit_index + 1:02d}" if len(self.visit_ages_years) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainState:
    """What age and disease have done to a brain by one visit.

    Attributes:
        brain_age_years: Age that the brain has, which drives everything below.
        brain_age_gap_years: Its part due to the disease.
        severity: Of the disease.
        ventricles: Strength of ventricular growth (`atrophy.combine`).
        cortex: Strength of cortical thinning.
        medial_temporal: Strength of medial temporal shrinkage, age and disease together.
        sulcal_loss_fraction: Grey matter beside sulci that has given way to fluid.
        medial_temporal_loss_fraction: Medial temporal grey matter that has given way to fluid.
        horn_fraction: How far the temporal horns have opened, 0 to 1.
        white_darkening: Loss of T1 signal around the ventricles, white matter = 1.
        contrast_loss: Part of the contrast between grey and white matter that is gone.
    """

    brain_age_years: float
    brain_age_gap_years: float
    severity: float
    ventricles: float
    cortex: float
    medial_temporal: float
    sulcal_loss_fraction: float
    medial_temporal_loss_fraction: float
    horn_fraction: float
    white_darkening: float
    contrast_loss: float


def draw_person(config: CohortConfig, index: int) -> Person:
    """The person at this place: a pure function of the seed and the place."""
    place, design = index % _BLOCK, _draw_design(config, index // _BLOCK)
    stream = open_stream(config.seed, Stream.PERSON, index)
    age = float(np.clip(design.ages[place] + stream.normal(0, 1.0), config.min_age_years, config.max_age_years))
    age = round(age, 1)
    own_mind, severity = stream.standard_normal(), float(np.clip(stream.normal(1.0, 0.22), 0.5, 1.6))
    family_index = index - place + design.sibling_places[0] if place in design.sibling_places else index
    if place in design.sibling_places:
        own_mind = math.sqrt(_SIBLING_CORRELATION) * design.family_mind + math.sqrt(1 - _SIBLING_CORRELATION) * own_mind
    is_ill, is_male = design.is_ill[place], design.is_male[place]
    size = stream.normal(0.02 if is_male else -0.02, 0.017)
    return Person(
        index=index,
        age_years=age,
        sex="M" if is_male else "F",
        diagnosis="disease" if is_ill else "control",
        cognition=round(100 + 15 * own_mind),
        family_index=family_index,
        site_index=design.site_indices[place],
        visit_ages_years=(age, *_draw_later_ages(config, index, age, stream)),
        severity=severity if is_ill else 0.0,
        pace=float(np.clip(stream.normal(1.0, 0.12), 0.7, 1.4)),
        brain_age_offset_years=float(stream.normal(0, 2.0)),
        scales=tuple(float(math.exp(size + part)) for part in stream.normal(0, 0.012, 3)),  # pyright: ignore[reportArgumentType] # three of them
        ventricle_offset=float(stream.normal(0, 0.2)),
        cortex_offset=float(stream.normal(0, 0.035)),
    )


def age_brain(config: CohortConfig, person: Person, visit_index: int) -> BrainState:
    """What has become of the brain by this visit."""
    years = person.visit_ages_years[visit_index] - person.age_years
    severity = person.severity * (1 + _PROGRESSION_PER_YEAR * years) * config.disease_effect
    gap = _DISEASE_GAP_YEARS * severity
    brain_age = person.age_years + person.brain_age_offset_years + person.pace * years + gap
    life = (brain_age - 20) / 60
    return BrainState(
        brain_age_years=brain_age,
        brain_age_gap_years=gap,
        severity=severity,
        ventricles=-0.2 + 0.8 * life + 1.25 * max(life, 0) ** 2 + person.ventricle_offset,
        cortex=-0.05 + 0.5 * life + person.cortex_offset,
        medial_temporal=0.12 * life + 0.85 * severity,
        sulcal_loss_fraction=max(0.0, 0.22 * life + person.cortex_offset),
        medial_temporal_loss_fraction=min(0.95, 0.75 * severity),
        horn_fraction=min(1.0, 0.75 * severity),
        white_darkening=0.16 * max(life, 0) ** 2,
        contrast_loss=0.18 * max(life, 0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Design:
    ages: tuple[float, ...]
    is_ill: tuple[bool, ...]
    is_male: tuple[bool, ...]
    site_indices: tuple[int, ...]
    sibling_places: tuple[int, ...]
    family_mind: float


def _draw_design(config: CohortConfig, block: int) -> _Design:
    """Ages of two pairs, who is ill, who are siblings, and where each is scanned; in random order."""
    stream = open_stream(config.seed, Stream.DESIGN, block)
    start = open_stream(config.seed, Stream.DESIGN).random()
    # Multiples of the golden ratio spread evenly, so that small cohorts cover all ages too.
    parts = [(start + _GOLDEN_RATIO * (2 * block + pair)) % 1 for pair in range(2)]
    width = config.max_age_years - config.min_age_years
    ages = [config.min_age_years + width * part for part in parts]
    order = stream.permutation(_BLOCK)
    has_family, family_mind = stream.random() < _FAMILY_CHANCE, stream.standard_normal()
    if has_family:
        ages[1] = ages[0] + stream.uniform(-5, 5)
    sibling_orders = (0, 1 if stream.random() < 0.5 else 3)
    male_first = stream.random() < 0.5
    return _Design(
        ages=tuple(ages[o % 2] for o in order),
        is_ill=tuple(bool(o >= 2) for o in order),
        is_male=tuple(bool((o in (0, 3)) == male_first) for o in order),
        # Every block sees every site, one of them twice.
        site_indices=tuple(stream.permutation([*range(len(SITES)), int(stream.integers(len(SITES)))]).tolist()),
        sibling_places=tuple(np.flatnonzero(np.isin(order, sibling_orders)).tolist()) if has_family else (),
        family_mind=float(family_mind),
    )


def _draw_later_ages(config: CohortConfig, index: int, age: float, stream: np.random.Generator) -> tuple[float, ...]:
    later = round(age + stream.uniform(2, 8), 1)
    fraction = config.longitudinal_fraction
    comes_again = math.floor((index + 1) * fraction + 1e-9) > math.floor(index * fraction + 1e-9)
    return (later,) if comes_again else ()


def _require(holds: bool, rule: str, given: object) -> None:
    if not holds:
        raise SimulationError(f"this cohort cannot be simulated: {rule}", given=given)
