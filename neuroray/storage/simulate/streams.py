"""Random streams: one per purpose and index, so that nothing depends on who is simulated first or by which process."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream is drawn for; the numbers are part of what a seed means and never change."""

    DESIGN = 0
    PERSON = 1
    FAMILY_SHAPE = 2
    OWN_SHAPE = 3
    T1W = 4
    BOLD = 5
    CONNECTIVITY = 6


def open_stream(seed: int, stream: Stream, *index: int) -> np.random.Generator:
    """The generator of one purpose and index: always the same numbers for the same arguments."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *index))
    return np.random.Generator(np.random.Philox(sequence))
