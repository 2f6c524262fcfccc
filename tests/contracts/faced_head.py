"""A head with a face that shines, so that a picture which shows any of it is told."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

SPACING_MM = (2.0, 2.0, 2.0)
SHAPE = (90, 125, 125)
SKULL, FACE = 0.3, 1.0
CENTRE_MM = np.array([89.0, 108.0, 140.0])


def make_head(pitch: float = 0.0) -> np.ndarray:
    """Skull, neck, and a bright face: eyes and nose where an adult has them, nodding by so much (radians, up above 0).

    Distances after the NIST/ISO head forms: skull 150 x 190 x 220 mm (with the chin), eyes 100 mm under the vertex and
    75 mm in front of the head's middle, 32 mm beside the midline, 12 mm large; the nose 20 mm before them.
    """
    points = np.indices(SHAPE).reshape(3, -1).T * SPACING_MM - CENTRE_MM
    points = points @ Rotation.from_euler("x", pitch).as_matrix()
    head = np.zeros(len(points), np.float32)
    head[((points / [75, 95, 95]) ** 2).sum(axis=1) < 1] = SKULL
    head[
        (np.abs(points[:, 0]) < 45) & (np.abs(points[:, 1] - 25) < 60) & (points[:, 2] < 0) & (points[:, 2] > -130)
    ] = SKULL
    for x in (-32, 32):
        head[((points - [x, 75, -5]) ** 2).sum(axis=1) < 12**2] = FACE
    head[
        (np.abs(points[:, 0]) < 14) & (points[:, 1] > 72) & (points[:, 1] < 112) & (np.abs(points[:, 2] + 20) < 26)
    ] = FACE
    return head.reshape(SHAPE)
