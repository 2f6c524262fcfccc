"""The brain age gap: from ages that any model predicted to a gap that can be believed, and what it goes with."""
