"""What a step holds and computes, found by running it on tensors that have shapes and no memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from neuroray.platform.train.recipe import OptimConfig, Recipe, ScalingConfig
from neuroray.platform.train.task import RehearsableTask

Grid = tuple[int, int, int]

PARTS = ("convolutions", "attention", "linear maps")
_PHASES = ("forward", "again", "backward")

# What CUDA's autocast computes in float32 of what our models use, and the CPU's, under which we rehearse, does not.
_FULL_PRECISION = ("group_norm", "layer_norm", "normalize")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a pass over some rows holds besides parameters, in bytes, and computes.

    Attributes:
        activations: For each amount of gradients of parameters, the most of all else that is held beside it.
        widest: The largest map that enters a convolution.
        flops: Operations by phase (forward, again, backward) and part.
    """

    activations: dict[int, int]
    widest: int
    flops: dict[str, dict[str, int]]

    @property
    def laid_out(self) -> int:
        """What a convolution lays out anew of what enters it and of gradients; on a CPU 1.3 to 2.2 maps were seen."""
        return 2 * self.widest

    def peak(self, num_ranks: int) -> tuple[int, int]:
        """Gradients and activations of a rank where both together are most; ranks share gradients."""
        found = [(-(-gradients // num_ranks), others) for gradients, others in self.activations.items()]
        return max(found, key=sum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """What of a task's module is spread over ranks.

    Attributes:
        num_parameters: All that are trained.
        largest_block: Parameters of the largest unit that is gathered as a whole.
        root: Parameters of no such unit, which stay gathered from the forward pass on.
        row: What a row of a batch is, in the plural.
    """

    num_parameters: int
    largest_block: int
    root: int
    row: str


@functools.lru_cache(maxsize=32)
def describe_module(recipe: Recipe, grid: Grid | None) -> Module:
    """The module of a task that can be rehearsed, built without memory."""
    task = recipe.task()
    assert isinstance(task, RehearsableTask)
    with FakeTensorMode(), _Answers(truth=False):
        module = task.build()
    blocks = [_count_trained(block) for block in task.blocks(module)]
    total = _count_trained(module)
    row = task.name_row(grid)
    return Module(num_parameters=total, largest_block=max(blocks, default=0), root=total - sum(blocks), row=row)


def _count_trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def rehearse(recipe: Recipe, num_rows: int, *, grid: Grid | None, training: bool, on_gpu: bool) -> Held:
    """What a pass of a task over so many rows at once holds and computes.

    The step of the task itself is run twice, over one and two rows, on fake tensors; both grow by the same with every
    row, so more are known from there. Not seen: what a library takes for itself within an operation.

    Args:
        recipe: Its task must be a `RehearsableTask`.
        num_rows: Of one pass of one rank.
        grid: Of the volumes; None: the task's own.
        training: Forward and backward, or a validation pass.
        on_gpu: Whether norms compute in float32 under autocast, as CUDA has it.
    """
    bare = dataclasses.replace(
        recipe,
        seed=0,
        name="",
        optim=OptimConfig(),
        scaling=ScalingConfig(),
        loop=dataclasses.replace(recipe.loop, batch_size=1, num_epochs=1),
    )
    one, two = (_run(bare, rows, grid, training, on_gpu) for rows in (1, 2))
    more = num_rows - 1

    def extend(first: int, second: int) -> int:
        return first + more * (second - first)

    shared = one.activations.keys() & two.activations.keys()
    return Held(
        activations={key: extend(one.activations[key], two.activations[key]) for key in shared},
        widest=extend(one.widest, two.widest),
        flops={
            phase: {part: extend(one.flops[phase][part], two.flops[phase][part]) for part in PARTS} for phase in _PHASES
        },
    )


@functools.lru_cache(maxsize=32)
def _run(recipe: Recipe, num_rows: int, grid: Grid | None, training: bool, on_gpu: bool) -> Held:
    task = recipe.task()
    assert isinstance(task, RehearsableTask)
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.ExitStack() as stack:
        with _Answers(truth=False):  # to whether drawn weights lie too far out
            module, make_batch = task.stand_ins(grid)
        module.train(training)
        ledger = stack.enter_context(Ledger(module))
        stack.enter_context(torch.set_grad_enabled(training))
        batch = make_batch(num_rows)
        if on_gpu:
            stack.enter_context(_as_cuda())
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.loop.precision == "bf16"):
            outputs = task.forward(module, batch)
        outputs = {name: value.float() for name, value in outputs.items()}
        loss = task.loss(outputs, task.targets(batch))["loss"]
        if training:
            loss.backward()
    return ledger.read()


@contextlib.contextmanager
def _as_cuda() -> Iterator[None]:
    """Norms take and give float32 where autocast is on.

    By putting other functions in torch's place: a mode of torch's would not reach what checkpoints compute again.
    """
    held = {name: getattr(functional, name) for name in _FULL_PRECISION}

    def widen(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def compute(given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return norm(given.float() if torch.is_autocast_enabled("cpu") else given, *args, **kwargs)

        return compute

    try:
        for name, norm in held.items():
            setattr(functional, name, widen(norm))
        yield
    finally:
        for name, norm in held.items():
            setattr(functional, name, norm)


class _Answers(TorchDispatchMode):
    """Fake tensors have no values; who asks for one is told 0, or this truth.

    Args:
        truth: Of ours, tests that ask for a value ask whether all is well.
    """

    def __init__(self, *, truth: bool = True) -> None:
        super().__init__()
        self._truth = truth

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            kind = args[0].dtype
            return self._truth if kind == torch.bool else 0.0 if kind.is_floating_point else 0
        return func(*args, **(kwargs or {}))


@dataclass(slots=True)
class _Count:
    """What is held now, and what was."""

    live: int = 0
    gradients: int = 0
    activations: dict[int, int] = field(default_factory=dict)
    widest: int = 0


class Ledger(_Answers):
    """Enters every storage that an operation makes, strikes it off when it is freed, and counts operations.

    Args:
        module: Its parameters and buffers are not entered; the gradients of its parameters are told apart.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self._count = _Count()
        self._known: dict[int, Any] = {}
        self._flops = {phase: Counter[str]() for phase in _PHASES}
        for tensor in [] if module is None else [*module.parameters(), *module.buffers()]:
            self._enter(tensor, size=0)
            if isinstance(tensor, nn.Parameter):
                tensor.register_post_accumulate_grad_hook(self._see_gradient)

    def read(self) -> Held:
        """What was found."""
        flops = {phase: {part: self._flops[phase][part] for part in PARTS} for phase in _PHASES}
        return Held(activations=dict(self._count.activations), widest=self._count.widest, flops=flops)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self._count_operations(func, args, kwargs or {}, result)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return result

    def _count_operations(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        packet = func._overloadpacket
        if packet in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            entering = args[0] if packet is torch.ops.aten.convolution else args[1]
            self._count.widest = max(self._count.widest, entering.numel() * entering.element_size())
        if packet not in flop_registry:
            return
        phase = "forward"
        if torch._C._current_graph_task_id() != -1:
            # Within a backward pass only checkpoints, which compute again, record for a gradient.
            phase = "again" if torch.is_grad_enabled() else "backward"
        name = str(packet)
        part = "convolutions" if "conv" in name else "attention" if "attention" in name else "linear maps"
        self._flops[phase][part] += flop_registry[packet](*args, **kwargs, out_val=result)

    def _enter(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        count, known = self._count, self._known
        held = storage.nbytes() if size is None else size

        def strike(_: Any) -> None:
            count.live -= held
            del known[key]

        known[key] = weakref.ref(storage, strike)
        count.live += held
        self._note()

    def _see_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._count.gradients += parameter.grad.numel() * parameter.grad.element_size()
        self._note()

    def _note(self) -> None:
        count = self._count
        others = count.live - count.gradients
        if others > count.activations.get(count.gradients, -1):
            count.activations[count.gradients] = others


def trace_peak(build: Callable[[], nn.Module], work: Callable[[Any], Any]) -> int:
    """The most bytes that work on a module, without gradients, holds besides its parameters and buffers.

    What convolutions lay out anew is counted (`Held.laid_out`).
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        with _Answers(truth=False):
            module = build().eval()
        with Ledger(module) as ledger, torch.no_grad():
            work(module)
    held = ledger.read()
    return sum(held.peak(1)) + held.laid_out
