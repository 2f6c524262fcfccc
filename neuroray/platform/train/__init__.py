"""Fitting a recipe on one process or many."""
