"""The causal convolution as its formula reads, token by token and tap by tap: this file defines what is right.

With K taps and x zero before the first token (`reverse`: after the last), for each channel c:

    p_t[c]   = bias[c] + sum over k = 0 .. K-1 of weight[c, k] x_{t - (K-1) + k}[c]
    p_t[c]   = bias[c] + sum over k = 0 .. K-1 of weight[c, k] x_{t + (K-1) - k}[c]      reverse
    out_t[c] = p_t[c] sigmoid(p_t[c])                                                    without silu: p_t[c]
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuroray.kernels.causal_conv.inputs import ConvInputs


def convolve_by_tokens(inputs: ConvInputs) -> Tensor:
    """Output in x's dtype; differentiable by autograd, in float64 where x is."""
    dtype = inputs.state_dtype
    # Taken apart once: indexing each token would make the gradient write all tokens again for every one of them.
    tokens = inputs.x.to(dtype).unbind(1)
    taps = inputs.weight.to(dtype).unbind(1)
    outputs = []
    for present in range(len(tokens)):
        total = torch.zeros_like(tokens[0])
        if inputs.bias is not None:
            total = total + inputs.bias.to(dtype)
        for k, tap in enumerate(taps):
            lag = len(taps) - 1 - k
            seen = present + lag if inputs.reverse else present - lag
            if 0 <= seen < len(tokens):
                total = total + tap * tokens[seen]
        outputs.append(total * torch.sigmoid(total) if inputs.silu else total)
    return torch.stack(outputs, 1).to(inputs.x.dtype)
