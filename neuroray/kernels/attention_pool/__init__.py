"""Attention pooling: a ragged batch of rows per volume, weighed by learned scores and summed."""

from neuroray.kernels.attention_pool.api import IMPLEMENTATIONS, AttentionPoolOutput, attention_pool

__all__ = ["IMPLEMENTATIONS", "AttentionPoolOutput", "attention_pool"]
