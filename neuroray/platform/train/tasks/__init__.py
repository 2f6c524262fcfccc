"""The training side of each model: its recipe class and its task."""
