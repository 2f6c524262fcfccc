"""NeuroAR: the same brain at a later age, generated scale by scale (arXiv 2507.22954)."""
