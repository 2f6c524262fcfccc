"""Scans on disk or in a bucket: reading, writing, the store and its catalogue."""
