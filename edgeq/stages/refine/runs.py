"""Run small graphs many times: on all samples, with one number or another changed, in the specification's arithmetic.

Samples run side by side on threads, each session on one, and come back in order: nothing depends on how many
cores there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from edgeq.machine import usable_cores
from edgeq.runtime import open_session, session_options

__all__ = ["Runner", "in_order", "open_runner"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Feeds = Mapping[str, np.ndarray]

_EXCHANGED = ("QuantizeLinear", "DequantizeLinear", "Add")
_TYPES = ("float32", "int8", "uint8", "int16", "uint16", "int32")


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map`` on all cores, of which only a few results wait at a time."""
    cores = usable_cores()
    if cores == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Runner:
    """A session whose constants around Q and DQ can be exchanged, so that a trial does not cost a new session."""

    def __init__(self, model: ir.Model, stack: ExitStack) -> None:
        self._shape = _structure(model)
        self.constants = {str(v.name): _array(v) for v in model.graph.initializers.values()}
        self.outputs = [str(value.name) for value in model.graph.outputs]
        given = {value.name for value in model.graph.inputs}
        opened = model.clone()
        self.exchangeable = {
            str(value.name)
            for value in opened.graph.initializers.values()
            if value.name not in given and _may_change(value)
        }
        opened.graph.inputs.extend(opened.graph.initializers[name] for name in sorted(self.exchangeable))
        self.session = stack.enter_context(open_session(opened, session_options(threads=1, optimization="none")))
        self.inputs = {name for value in self.session.get_inputs() if (name := value.name) in given}

    def changes(self, model: ir.Model) -> dict[str, np.ndarray] | None:
        """What to feed so that this session computes ``model``; None where that takes another session."""
        if _structure(model) != self._shape:
            return None
        changed = {}
        for value in model.graph.initializers.values():
            name, array = str(value.name), _array(value)
            held = self.constants[name]
            if array is held or np.array_equal(array, held):
                continue
            if name not in self.exchangeable:
                return None
            changed[name] = array
        return changed

    def run(self, feeds: Feeds, changes: Feeds | None = None) -> list[np.ndarray]:
        """The outputs, in the order of the model's. Safe to call from several threads."""
        given = {name: feeds[name] for name in self.inputs}
        found: list[np.ndarray] = self.session.run(self.outputs, {**given, **(changes or {})})
        return found


@contextmanager
def open_runner(model: ir.Model) -> Iterator[Runner]:
    """A session for ``model`` that is closed at the end."""
    with ExitStack() as stack:
        yield Runner(model, stack)


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _may_change(value: ir.Value) -> bool:
    users = [node for node, _ in value.uses()]
    plain = value.dtype is not None and value.dtype.numpy().name in _TYPES
    return plain and bool(users) and all(node.op_type in _EXCHANGED for node in users)


def _structure(model: ir.Model) -> tuple[object, ...]:
    """All but the numbers: equal for two graphs that differ in the values of their constants alone."""
    nodes = tuple(
        (
            node.domain,
            node.op_type,
            tuple(None if v is None else v.name for v in node.inputs),
            tuple(v.name for v in node.outputs),
            tuple((a.name, _identity(a)) for a in node.attributes.values()),
        )
        for node in model.graph
    )
    constants = tuple((v.name, v.dtype, _array(v).shape) for v in model.graph.initializers.values())
    return nodes, constants, tuple(value.name for value in model.graph.outputs)


def _identity(attribute: ir.Attr) -> object:
    """Graphs and tensors count as others even where they are equal: that costs a session, and no more."""
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR):
        return id(attribute.value)
    value = attribute.value
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
