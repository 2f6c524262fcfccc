"""A T1-weighted scan of a head."""

from __future__ import annotations

import numpy as np

from neuroray.storage.simulate import acquisition
from neuroray.storage.simulate.acquisition import Picture, Placement
from neuroray.storage.simulate.anatomy import Head, load_tissues_for
from neuroray.storage.simulate.people import BrainState, CohortConfig, Person
from neuroray.storage.simulate.sites import SITES, Site
from neuroray.storage.simulate.streams import Stream, open_stream
from neuroray.storage.simulate.template import Volume

_BONE = 0.08  # signal, white matter = 1


def take_t1w(config: CohortConfig, person: Person, visit_index: int, head: Head) -> Picture:
    """The person's T1-weighted scan at a visit, on the site's own grid, contrast and storage."""
    site, stream = SITES[person.site_index], open_stream(config.seed, Stream.T1W, person.index, visit_index)
    placement = _place(config, site, stream)
    signal = _render(config, site, head, placement)
    gain = site.gain * float(np.exp(stream.normal(0, 0.08)))
    shading = np.float32(1) if config.registered else acquisition.draw_bias(placement.shape, site.bias, stream)
    noisy = acquisition.add_rician_noise(signal * shading, site.noise, stream)
    values = np.float32(gain) * (noisy if config.head else noisy * (signal > 0))
    axis_codes = ("R", "A", "S") if config.registered else site.axis_codes
    turned, affine = acquisition.store_as(values, placement.affine, axis_codes)
    stored = acquisition.encode_int16(turned, slope=site.slope, intercept=site.intercept)
    nifti = acquisition.make_nifti(stored, affine, slope=site.slope, intercept=site.intercept, repetition_time_s=None)
    return Picture(nifti=nifti, placement=placement, gain=gain)


def _place(config: CohortConfig, site: Site, stream: np.random.Generator) -> Placement:
    if config.registered:
        return acquisition.place_registered(config.spacing_mm)
    zooms = (config.spacing_mm, config.spacing_mm, config.spacing_mm * site.thickness)
    return acquisition.place_head(zooms, site.tilt_deg, stream)


def _render(config: CohortConfig, site: Site, head: Head, placement: Placement) -> Volume:
    """Signal without noise and shading, white matter = 1."""
    tissues = load_tissues_for(config.spacing_mm)
    points = head.map_grid(placement.voxels_to_head, placement.shape)
    signal = np.maximum(tissues.warp(_signal_weights(site, head.state, with_head=config.head), points), 0)
    if config.head:
        return signal
    brain = tissues.warp({"grey": 1.0, "white": 1.0, "csf": 1.0}, points) > 0.5
    return signal * brain


def _signal_weights(site: Site, state: BrainState, *, with_head: bool) -> dict[str, float]:
    """How much each map of `Tissues` shines."""
    grey = site.grey + state.contrast_loss * (1 - site.grey)
    weights = {
        "grey": grey,
        "white": 1.0,
        "csf": site.csf,
        "detail": 1.0,
        "sulcal": state.sulcal_loss_fraction * (site.csf - grey),
        "medial_temporal": state.medial_temporal_loss_fraction * (site.csf - grey),
        "horn_grey": state.horn_fraction * (site.csf - grey),
        "horn_white": state.horn_fraction * (site.csf - 1.0),
        "periventricular": -state.white_darkening,
    }
    return weights | {"bone": _BONE, "scalp": site.scalp} if with_head else weights
