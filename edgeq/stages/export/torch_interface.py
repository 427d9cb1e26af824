"""Between torch and arrays: names of inputs and outputs, a module as a function, silence."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ExportError
from edgeq.stages.export.parity import Arrays, Reference
from edgeq.stages.export.requirements import need

if TYPE_CHECKING:
    import torch

__all__ = [
    "first_line",
    "is_positional",
    "name_inputs",
    "named_outputs",
    "quiet",
    "run_module",
    "tensor_to_array",
    "weights_digest",
]


def name_inputs(module: torch.nn.Module, inputs: object, *, where: str) -> dict[str, torch.Tensor]:
    """Tensors by input name, from a tensor, a tuple or a dict, in the order of ``forward``.

    Raises:
        ExportError: not tensors, more than ``forward`` takes, names that it does not take, or one
            tensor for two inputs without a default.
    """
    torch = need("torch", extra="torch", purpose="a torch module")
    parameters = inspect.signature(module.forward).parameters
    named: dict[str, Any]
    if isinstance(inputs, Mapping):
        unknown = [name for name in inputs if name not in parameters]
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        if unknown and not takes_any:
            raise ExportError(
                f"forward() takes no input {', '.join(unknown)}",
                where=where,
                remedy=f"it takes: {', '.join(parameters)}",
            )
        order = [name for name in parameters if name in inputs] + unknown
        named = {name: inputs[name] for name in order}
    else:
        values = (inputs,) if isinstance(inputs, (torch.Tensor, np.ndarray)) else inputs
        if not isinstance(values, (tuple, list)) or not values:
            raise ExportError(
                "example inputs are needed: a tensor, a tuple of tensors or a dict of tensors by name; "
                f"found {type(inputs).__name__}",
                where=where,
            )
        named = dict(zip(_positional_names(parameters, len(values), where), values, strict=True))
    named = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in named.items()}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"example input {name!r} is {type(value).__name__}, not a tensor",
                where=where,
                remedy="give tensors only; bind other arguments in a module of your own",
            )
        if value.device.type != "cpu":
            raise ExportError(f"example input {name!r} is on {value.device}", where=where, remedy="move it to the CPU")
    return named


def _positional_names(parameters: Mapping[str, inspect.Parameter], count: int, where: str) -> list[str]:
    names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL), None)
    if count > len(names):
        if rest is None:
            raise ExportError(
                f"{count} example inputs for a forward() that takes {len(names)}: {', '.join(names)}", where=where
            )
        names += [f"{rest}_{index}" for index in range(count - len(names))]
    return names[:count]


def is_positional(module: torch.nn.Module) -> bool:
    """Whether ``forward`` takes inputs that cannot be given by name."""
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    return bool(kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY})


def run_module(module: torch.nn.Module, *, where: str) -> Reference:
    """The module as a function of arrays: the reference for parity."""
    import torch

    def reference(inputs: Arrays) -> dict[str, np.ndarray]:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        with quiet(), torch.no_grad():
            try:
                result = module(*tensors.values()) if is_positional(module) else module(**tensors)
            except Exception as error:  # whatever the module raises
                raise ExportError(
                    f"the module fails on the example inputs: {type(error).__name__}: {first_line(error)}",
                    where=where,
                    remedy="check the inputs' shapes and types against forward()",
                ) from error
        return named_outputs(result)

    return reference


def _named_leaves(result: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors of a nested output and their names, in the order of torch's pytree; None is skipped."""
    if result is None:
        return
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        items = list(zip(result._fields, result, strict=True))
    elif isinstance(result, (tuple, list)):
        items = [(f"output_{index}" if not name else str(index), value) for index, value in enumerate(result)]
    else:
        yield name or "output", result
        return
    for key, value in items:
        yield from _named_leaves(value, f"{name}_{key}" if name else key)


def named_outputs(result: object) -> dict[str, np.ndarray]:
    """The tensors of a module's result by name: dict keys, field names, ``output_0``, ..., or ``output``."""
    return {name: tensor_to_array(value) for name, value in _named_leaves(result)}


def tensor_to_array(value: Any) -> np.ndarray:
    """A torch tensor as a numpy array; bfloat16 and the small floats keep their type through ml_dtypes."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise ExportError(f"the module returns {type(value).__name__}, not a tensor", remedy="return tensors only")
    return np.array(ir.tensor_adapters.TorchTensor(value.detach().contiguous()).numpy())


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = tensor_to_array(state[name])
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout or stderr, no warnings, no log lines: exporters and model code are chatty.

    What matters comes as an exception.
    """
    disabled = logging.root.manager.disable
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(disabled)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
