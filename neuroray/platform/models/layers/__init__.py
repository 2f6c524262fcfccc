"""Layers that two models share."""
