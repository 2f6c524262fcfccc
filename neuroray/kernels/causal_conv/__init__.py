"""Depthwise causal convolution over tokens with SiLU: Mamba's short convolution, channels last, in either direction."""

from neuroray.kernels.causal_conv.api import IMPLEMENTATIONS, causal_conv, choose_implementation

__all__ = ["IMPLEMENTATIONS", "causal_conv", "choose_implementation"]
