"""The benchmark of `make bench-data`: windows and streams against their peers, on the same bytes, in one run."""
