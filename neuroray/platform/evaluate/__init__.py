"""Judging a run on people it has not seen."""
