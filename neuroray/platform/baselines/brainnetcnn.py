"""BrainNetCNN, small: convolutions over rows and columns of a connectivity matrix (Kawahara et al. 2017)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.baselines.connectivity import to_matrix
from neuroray.platform.baselines.network_training import NetworkRecipe, Rows, Side, fit_network, num_outputs
from neuroray.platform.baselines.predictors import Features, Predict, Sample, Task

_LEAK = 0.33  # of the paper's "very leaky" rectifiers
_DROPOUT = 0.5
_EDGE_FILTERS, _NODE_FILTERS, _GRAPH_FILTERS, _HIDDEN = 8, 32, 64, 30


class BrainNetCNN(nn.Module):
    """Edge to edge, edge to node, node to graph, two dense layers; a fraction of the paper's filters.

    The cross-shaped filters are written as matrix products over rows and columns: the same sums as convolutions with
    kernels as long as the matrix, several times faster on a CPU.
    """

    def __init__(self, num_regions: int, num_outputs: int) -> None:
        super().__init__()
        self.edge_row = nn.Linear(num_regions, _EDGE_FILTERS)
        self.edge_column = nn.Linear(num_regions, _EDGE_FILTERS, bias=False)
        self.edge_to_node = nn.Linear(_EDGE_FILTERS * num_regions, _NODE_FILTERS)
        self.node_to_graph = nn.Linear(_NODE_FILTERS * num_regions, _GRAPH_FILTERS)
        self.hidden = nn.Linear(_GRAPH_FILTERS, _HIDDEN)
        self.head = nn.Linear(_HIDDEN, num_outputs)

    def forward(self, matrix: Float[Tensor, "row region region"]) -> Float[Tensor, "row output"]:
        """Logits, or a standardised measure."""
        hidden = functional.leaky_relu(self.mix_edges(matrix), _LEAK)
        hidden = functional.leaky_relu(self.edge_to_node(hidden.flatten(2)), _LEAK)
        hidden = functional.leaky_relu(self.node_to_graph(hidden.flatten(1)), _LEAK)
        hidden = functional.dropout(hidden, _DROPOUT, self.training)
        hidden = functional.leaky_relu(self.hidden(hidden), _LEAK)
        return self.head(functional.dropout(hidden, _DROPOUT, self.training))

    def mix_edges(self, matrix: Float[Tensor, "row region region"]) -> Float[Tensor, "row first filter second"]:
        """Every edge from all edges of its two regions: equation 1 of the paper."""
        from_rows = self.edge_row(matrix)
        from_columns = self.edge_column(matrix.mT).mT
        return from_rows[..., None] + from_columns[:, None]


def fit_brainnetcnn(train: Sample, val: Sample, task: Task) -> Predict:
    """Trains it on the training side, stopped by the validation side."""
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        module = BrainNetCNN(train.features.num_regions, num_outputs(task))
        learned, watched = (Side(values=sample.values, rows=_rows(sample.features)) for sample in (train, val))
        predict = fit_network(module, learned, watched, task, NetworkRecipe())
    return lambda features: predict(_rows(features), len(features.edges))


def _rows(features: Features) -> Rows:
    def take(chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(to_matrix(features.edges[chosen], features.num_regions))

    return take
