"""Neuroray: train and serve brain-imaging models on volumes, with Ray."""

__version__ = "0.1.0"
