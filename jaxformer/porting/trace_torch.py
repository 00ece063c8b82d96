"""The trace of a PyTorch model, by forward hooks on its modules."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from jaxformer.porting.compare import DType
from jaxformer.porting.trace import Call, Trace, output_weights


def trace_torch(model: torch.nn.Module, args: Sequence[Any], dtype: DType, seed: int) -> Trace:
    """Run `model(*args)` and record every module's calls; `trace_jax` explains the arguments.

    Neither the model nor the `.grad` of its parameters is changed.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    calls: list[Call] = []
    running: list[int] = []
    ended = 0

    def before(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        path = paths[id(module)]
        number = sum(call.path == path for call in calls)
        inputs: list[torch.Tensor] = []
        args = tuple(_tracked(x, inputs) for x in args)
        kwargs = {name: _tracked(kwargs[name], inputs) for name in sorted(kwargs)}  # as in jax
        running.append(len(calls))
        calls.append(Call(path, number, 0, inputs, [], [], []))
        return args, kwargs

    def after(module: torch.nn.Module, args: tuple, output: Any) -> None:
        nonlocal ended
        index = running.pop()
        calls[index] = calls[index]._replace(end=ended, outputs=_tensors(output))
        ended += 1

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            pre = module.register_forward_pre_hook(before, with_kwargs=True)
            post = module.register_forward_hook(after)
            stack.callback(pre.remove)
            stack.callback(post.remove)
        with torch.enable_grad():
            model(*args)

    outputs = [x for x in calls[0].outputs if x.requires_grad]
    shapes = [tuple(x.shape) for x in calls[0].outputs]
    weights = [torch.as_tensor(w) for w in output_weights(shapes, dtype, seed)]
    cotangents = [
        w.to(x.dtype) for w, x in zip(weights, calls[0].outputs, strict=True) if x.requires_grad
    ]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = [x for call in calls for x in (*call.inputs, *call.outputs)] + list(params.values())
    grads = iter(_gradients(outputs, wanted, cotangents))
    calls = [
        call._replace(
            input_grads=[next(grads) for _ in call.inputs],
            output_grads=[next(grads) for _ in call.outputs],
        )
        for call in calls
    ]
    return Trace(calls, set(paths.values()), {name: next(grads) for name in params})


def _tracked(value: Any, inputs: list[torch.Tensor]) -> Any:
    """Each float tensor as its own node of the graph, added to `inputs`; other values unchanged."""
    if isinstance(value, list | tuple):
        parts = [_tracked(part, inputs) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return value
    value = (value if value.requires_grad else value.detach().requires_grad_()).clone()
    inputs.append(value)
    return value


def _tensors(output: Any) -> list[torch.Tensor]:
    """The float tensors in a result: a tensor, or nested tuples, lists and dicts of tensors."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


def _gradients(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], weights: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Gradients of the weighted sum of the outputs, zero for an input that none depends on."""
    reached = [x for x in inputs if x.requires_grad]
    if not (outputs and reached):
        return [torch.zeros_like(x) for x in inputs]
    found = iter(torch.autograd.grad(outputs, reached, weights, allow_unused=True))
    grads = [next(found) if x.requires_grad else None for x in inputs]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
