"""A model with pieces of graph in front of it and behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableSequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.errors import ConfigError
from edgeq.graph import Names, unique_name

__all__ = ["Joined", "join", "make_room"]


@dataclass(frozen=True)
class Joined:
    """The whole model, and the names of the nodes that were added, in graph order."""

    model: ir.Model
    added: tuple[str, ...]


def join(model: ir.Model, front: ir.Model | None, back: ir.Model | None, replaced: Collection[str] = ()) -> Joined:
    """A copy of ``model`` (sharing its weights) that reads what ``front`` reads and gives what ``back`` gives.

    Outputs of ``front`` feed the inputs of ``model`` of the same name; the model's outputs and inputs, and other
    outputs of ``front``, feed the inputs of ``back``. The outputs of ``back`` come first; those of the model stay,
    but for the ``replaced`` ones. Nothing else of the model is touched, so what it was quantized to is what it was
    measured as.

    Raises:
        ConfigError: a name of theirs is taken in ``model``.
    """
    if same := (Names(model).taken - _fed_names(front)) & _given_names(front, back):
        raise ConfigError(
            f"the model itself has a tensor {', '.join(sorted(same))}, as an embedded step's is called",
            remedy="rename it, or leave out --embed-preprocessing and --embed-postprocessing",
        )
    whole = model.clone()
    taken = {str(node.name) for node in whole.graph}
    added: list[str] = []
    made: dict[str, ir.Value] = {}
    if front is not None:
        front = front.clone()
        made = {str(value.name): value for value in front.graph.outputs}
        added += _prepend(whole, front, made)
    if back is not None:
        added += _append(whole, back.clone(), replaced, made)
    if twice := taken & set(added):
        raise ConfigError(
            f"the model has nodes named {', '.join(sorted(twice)[:3])}, as embedded steps are called",
            remedy="rename them, or leave out --embed-preprocessing and --embed-postprocessing",
        )
    return Joined(whole, tuple(added))


def make_room(model: ir.Model, front: ir.Model | None, back: ir.Model | None, replaced: Collection[str] = ()) -> None:
    """Rename, in ``model``, what is called like inputs, outputs and nodes of ``front`` and ``back``.

    No app sees these names of the model: they are inside of it, or those of ``replaced`` outputs.

    Raises:
        ConfigError: an input or output of the model that stays is called so.
    """
    ours, names = _given_names(front, back), Names(model)
    seen = {str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)}
    if same := (seen - _fed_names(front) - set(replaced)) & ours:
        raise ConfigError(
            f"the model itself has an input or output {', '.join(sorted(same))}, as an embedded step's is called",
            remedy="rename it, or leave out --embed-preprocessing and --embed-postprocessing",
        )
    inner = [output for node in ir.traversal.RecursiveGraphIterator(model.graph) for output in node.outputs]
    for value in [*model.graph.initializers.values(), *inner]:
        if value.name in ours:
            value.name = names.fresh(str(value.name))
    added = {str(node.name) for piece in (front, back) if piece is not None for node in piece.graph}
    taken = added | {str(node.name) for node in model.graph}
    for node in model.graph:
        if node.name in added:
            node.name = unique_name(str(node.name), taken)
            taken.add(node.name)


def _fed_names(front: ir.Model | None) -> set[str]:
    """The inputs of the model that are none of the whole's."""
    return {str(value.name) for value in (front.graph.outputs if front is not None else ())}


def _given_names(front: ir.Model | None, back: ir.Model | None) -> set[str]:
    """What inputs and outputs of the whole are called by the pieces around it."""
    values = [*(front.graph.inputs if front is not None else ()), *(back.graph.outputs if back is not None else ())]
    return {str(value.name) for value in values}


def _prepend(whole: ir.Model, front: ir.Model, made: Mapping[str, ir.Value]) -> list[str]:
    graph = whole.graph
    for value in [value for value in graph.inputs if value.name in made]:
        source = made[str(value.name)]
        value.replace_all_uses_with(source)
        graph.inputs.remove(value)
    first = next(iter(graph), None)
    graph.inputs.extend(_taken_out(front.graph.inputs))
    nodes = _moved(whole, front)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    return [str(node.name) for node in nodes]


def _append(whole: ir.Model, back: ir.Model, replaced: Collection[str], made: Mapping[str, ir.Value]) -> list[str]:
    graph = whole.graph
    known = {**made, **{str(value.name): value for value in (*graph.inputs, *graph.outputs)}}
    for value in back.graph.inputs:
        value.replace_all_uses_with(known[str(value.name)])
    outputs = list(back.graph.outputs)
    kept = [value for value in graph.outputs if value.name not in replaced]
    nodes = _moved(whole, back)
    graph.extend(nodes)
    graph.outputs.clear()
    graph.outputs.extend([*outputs, *kept])
    return [str(node.name) for node in nodes]


def _taken_out(values: MutableSequence[ir.Value]) -> list[ir.Value]:
    """A value belongs to one graph at a time."""
    found = list(values)
    values.clear()
    return found


def _moved(whole: ir.Model, snippet: ir.Model) -> list[ir.Node]:
    """Take the nodes and constants out of ``snippet``; its constants go into ``whole``."""
    names = Names(whole)
    nodes = list(snippet.graph)
    constants = list(snippet.graph.initializers.values())
    snippet.graph.inputs.clear()
    snippet.graph.outputs.clear()
    snippet.graph.remove(nodes)
    snippet.graph.initializers.clear()
    for value in (*constants, *(output for node in nodes for output in node.outputs)):
        value.name = names.fresh(str(value.name))
    for value in constants:
        assert value.const_value is not None
        value.const_value.name = value.name
        whole.graph.register_initializer(value)
    return nodes
