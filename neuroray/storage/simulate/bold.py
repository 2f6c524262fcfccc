"""A resting-state BOLD run of a head: networks, drift, motion, breathing, heartbeat and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from neuroray.storage.simulate import acquisition, deformation
from neuroray.storage.simulate.acquisition import Picture, Placement
from neuroray.storage.simulate.anatomy import Head, load_tissues_for, tissue_weights
from neuroray.storage.simulate.networks import NETWORKS, couple_networks, load_network_maps
from neuroray.storage.simulate.people import CohortConfig, Person
from neuroray.storage.simulate.sites import SITES, Site
from neuroray.storage.simulate.streams import Stream, open_stream
from neuroray.storage.simulate.template import Volume

_GAIN = 1000.0
_SIGNAL = {"grey": 1.0, "white": 0.8, "csf": 1.25, "bone": 0.05, "scalp": 0.3}  # T2*-weighted, grey matter = 1
_NETWORK_CHANGE = 0.016  # standard deviation of what a network does to the signal of its grey matter
_NETWORK_MEMORY_S = 2.2  # time constant of the networks' fluctuations
_HEMISPHERE_SHARE = 0.25  # of a network's variance that its left and right half do not have in common
_LOCAL_CHANGE = 0.010  # spatially smooth noise
_GLOBAL_CHANGE = 0.004
_BREATHING_CHANGE, _HEARTBEAT_CHANGE = 0.004, 0.012
_DRIFT_CHANGE = 0.006
_THERMAL = 0.012  # per voxel of 4 mm, times the site's noise over the first site's
_MOTION_STEP_MM, _JERK_MM = 0.02, 0.35
MOTION_NAMES = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A BOLD run and what is known of it.

    Attributes:
        picture: The run as it goes to disk.
        coupling: True correlations between the networks.
        time_courses: What the networks did in this run (each with standard deviation about one).
        motion: Translations in mm and rotations in rad about the grid's axes, frame by frame.
        repetition_time_s: Between frames.
    """

    picture: Picture
    coupling: Float[np.ndarray, "network network"]
    time_courses: Float[np.ndarray, "time network"]
    motion: Float[np.ndarray, "time 6"]
    repetition_time_s: float


def take_bold(config: CohortConfig, person: Person, visit_index: int, head: Head) -> Recording:
    """The person's resting-state run at a visit."""
    site, stream = SITES[person.site_index], open_stream(config.seed, Stream.BOLD, person.index, visit_index)
    spacing = config.bold_spacing_mm
    placement = acquisition.place_head((spacing, spacing, spacing), site.tilt_deg, stream)
    coupling = couple_networks(config, person)
    courses = _draw_courses(coupling, config.num_frames, site.repetition_time_s, stream)
    motion = _draw_motion(config.num_frames, stream)
    frames = _render(config, site, head, placement, courses=courses, motion=motion, stream=stream)
    gain = _GAIN * float(np.exp(stream.normal(0, 0.08)))
    turned, affine = acquisition.store_as(np.moveaxis(frames, 0, -1), placement.affine, site.axis_codes)
    stored = acquisition.encode_int16(np.float32(gain) * turned, slope=1.0, intercept=0.0)
    nifti = acquisition.make_nifti(stored, affine, slope=1.0, intercept=0.0, repetition_time_s=site.repetition_time_s)
    return Recording(
        picture=Picture(nifti=nifti, placement=placement, gain=gain),
        coupling=coupling,
        time_courses=courses,
        motion=motion,
        repetition_time_s=site.repetition_time_s,
    )


def _render(
    config: CohortConfig,
    site: Site,
    head: Head,
    placement: Placement,
    *,
    courses: Float[np.ndarray, "time network"],
    motion: Float[np.ndarray, "time 6"],
    stream: np.random.Generator,
) -> Float32[np.ndarray, "time x y z"]:
    """Frames without gain, grey matter about 1."""
    points = head.map_grid(placement.voxels_to_head, placement.shape)
    still, fluid = _render_still(config, head, points)
    inside = still > 0.05
    shaded = still * acquisition.draw_bias(placement.shape, site.bias, stream)
    parts = [
        _network_part(points, inside, courses, stream),
        _body_part(still, fluid, inside, config.num_frames, site.repetition_time_s, stream),
        _drift_part(inside, config.num_frames, stream),
    ]
    change = sum(_spread(maps, times) for maps, times in parts)
    change += _LOCAL_CHANGE * _draw_local_noise(placement.shape, config.num_frames, stream)[:, inside]
    moved = _spread(*_motion_part(shaded, inside, motion, config.bold_spacing_mm))
    frames = np.repeat(shaded[None], config.num_frames, axis=0)
    frames[:, inside] += shaded[inside] * change + moved
    thermal = _THERMAL * site.noise / SITES[0].noise * (4.0 / config.bold_spacing_mm) ** 1.5
    noisy = acquisition.add_rician_noise(frames, thermal, stream)
    return noisy if config.head else noisy * inside


def _render_still(config: CohortConfig, head: Head, points: deformation.Points) -> tuple[Volume, Volume]:
    """The image without anything that changes, and the fraction of fluid."""
    tissues, weights = load_tissues_for(config.bold_spacing_mm), tissue_weights(head.state)
    blend: dict[str, float] = {name: _SIGNAL[name] for name in ("bone", "scalp")} if config.head else {}
    for tissue, parts in weights.items():
        for name, weight in parts.items():
            blend[name] = blend.get(name, 0.0) + _SIGNAL[tissue] * weight
    return tissues.warp(blend, points), tissues.warp(weights["csf"], points)


def _spread(
    maps: Float32[np.ndarray, "part voxel"], times: Float[np.ndarray, "time part"]
) -> Float32[np.ndarray, "time voxel"]:
    """The sum of each part's map times its course; not by BLAS, whose rounding depends on its number of threads."""
    return np.einsum("tp,pv->tv", times.astype(np.float32), maps, optimize=False)


def _network_part(
    points: deformation.Points,
    inside: Bool[np.ndarray, "x y z"],
    courses: Float[np.ndarray, "time network"],
    stream: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    networks = load_network_maps()
    index = deformation.to_index(points, networks.affine)[:, inside]
    maps = np.stack([deformation.sample(values, index) for values in (*networks.left, *networks.right)])
    own = stream.standard_normal((len(courses), 2 * len(NETWORKS)))
    both = np.concatenate([courses, courses], axis=1)
    times = np.sqrt(1 - _HEMISPHERE_SHARE) * both + np.sqrt(_HEMISPHERE_SHARE) * own
    return np.float32(_NETWORK_CHANGE) * maps, times


def _body_part(
    still: Volume,
    fluid: Volume,
    inside: Bool[np.ndarray, "x y z"],
    num_frames: int,
    repetition_time_s: float,
    stream: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Whole-brain fluctuation, breathing (about 0.3 Hz), heartbeat in the fluid (about 1.1 Hz), aliased as sampled."""
    time = np.arange(num_frames) * repetition_time_s
    breathing_hz, heart_hz = stream.normal(0.28, 0.03), stream.normal(1.1, 0.1)
    wander = np.cumsum(stream.normal(0, 0.15, (2, num_frames)), axis=1)
    phase = stream.uniform(0, 2 * np.pi, 2)
    breathing = np.sin(2 * np.pi * breathing_hz * time + phase[0] + wander[0]) * np.sqrt(2)
    heartbeat = np.sin(2 * np.pi * heart_hz * time + phase[1] + wander[1]) * np.sqrt(2)
    shared = _remember(stream.standard_normal((num_frames, 1)), 0.6)[:, 0]
    everywhere = np.ones(int(inside.sum()), dtype=np.float32)
    maps = np.stack(
        [
            np.float32(_GLOBAL_CHANGE) * everywhere,
            np.float32(_BREATHING_CHANGE) * np.clip(still[inside], 0, 1.5),
            np.float32(_HEARTBEAT_CHANGE) * np.clip(fluid[inside], 0, 1),
        ]
    )
    return maps, np.stack([shared, breathing, heartbeat], axis=1)


def _drift_part(
    inside: Bool[np.ndarray, "x y z"], num_frames: int, stream: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Slow trends that differ smoothly over the head."""
    time = np.linspace(-1, 1, num_frames)
    trends = np.stack([time, 1.5 * time**2 - 0.5, np.cos(np.pi * (time + stream.random()))], axis=1)
    where = np.argwhere(inside).T.astype(np.float32)
    middle = where.mean(axis=1, keepdims=True)
    tilt = stream.normal(0, 1, (len(trends[0]), 3)).astype(np.float32)
    level = stream.normal(0, 1, (len(trends[0]), 1)).astype(np.float32)
    slopes = np.einsum("pa,av->pv", tilt, (where - middle) / where.max())
    return np.float32(_DRIFT_CHANGE) * (level + slopes), trends


def _draw_local_noise(
    shape: tuple[int, int, int], num_frames: int, stream: np.random.Generator
) -> Float32[np.ndarray, "time x y z"]:
    """Noise of standard deviation one that neighbours share."""
    noise = stream.standard_normal((num_frames, *shape), dtype=np.float32)
    for axis in (1, 2, 3):
        noise = ndimage.uniform_filter1d(noise, 3, axis=axis, mode="wrap") * np.float32(3**0.5)
    return noise


def _motion_part(
    image: Volume, inside: Bool[np.ndarray, "x y z"], motion: Float[np.ndarray, "time 6"], spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """What small rigid movements do, to first order: the image's gradient times each voxel's shift."""
    gradient = [part[inside] / np.float32(spacing_mm) for part in np.gradient(image)]
    where = np.argwhere(inside).T.astype(np.float32)
    x, y, z = (where - where.mean(axis=1, keepdims=True)) * np.float32(spacing_mm)
    gx, gy, gz = gradient
    maps = np.stack([gx, gy, gz, y * gz - z * gy, z * gx - x * gz, x * gy - y * gx])
    return -maps.astype(np.float32), motion


def _draw_courses(
    coupling: Float[np.ndarray, "network network"],
    num_frames: int,
    repetition_time_s: float,
    stream: np.random.Generator,
) -> Float[np.ndarray, "time network"]:
    independent = stream.standard_normal((num_frames, len(coupling)))
    mixed = np.einsum("tn,mn->tm", independent, np.linalg.cholesky(coupling))
    return _remember(mixed, float(np.exp(-repetition_time_s / _NETWORK_MEMORY_S)))


def _remember(noise: Float[np.ndarray, "time n"], memory: float) -> Float[np.ndarray, "time n"]:
    """A stationary first-order autoregression of variance one."""
    series = noise.copy()
    for frame in range(1, len(series)):
        series[frame] = memory * series[frame - 1] + np.sqrt(1 - memory**2) * noise[frame]
    return series


def _draw_motion(num_frames: int, stream: np.random.Generator) -> Float[np.ndarray, "time 6"]:
    """Slow wandering, now and then a jerk that lasts; rotations move the brain's rim (50 mm) as far as translations."""
    steps = stream.normal(0, _MOTION_STEP_MM, (num_frames, 6))
    jerks = stream.random(num_frames) < 0.02
    steps[jerks] += stream.normal(0, _JERK_MM, (num_frames, 6))[jerks]
    motion = np.cumsum(steps, axis=0) - steps[0]
    motion[:, 3:] /= 50.0
    return motion
