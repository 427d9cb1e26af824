"""Convert a float32 graph to float16: what applications feed and read stays float32, and so do islands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeq.float16 import HalfForm, half_form, lost, to_half
from edgeq.graph import Names, constant_array, outer_nodes

__all__ = ["to_float16"]

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

_ANY_TYPE = frozenset({"Cast", "Shape", "Size"})
"""Operators whose result does not depend on the type of what they read."""

_LOSSY_SCALE = 0.01


def to_float16(model: ir.Model, islands: Mapping[str, str]) -> ir.Model:
    """Convert ``model`` in place and return it; nodes that ``islands`` names stay float32.

    Inputs and outputs keep their types: one Cast stands behind each float32 input that is read in
    float16, one in front of each output. A tensor that both kinds of nodes read is cast once; a Cast
    never follows a Cast. If, Loop and Scan stay float32 with all that is inside. Weights that both
    kinds read are stored in both types.
    """
    _Converter(model, islands).run()
    return model


class _Converter:
    def __init__(self, model: ir.Model, islands: Mapping[str, str]) -> None:
        self.model = model
        self.islands = islands
        self.opset = model.opset_imports.get("", 1)
        self.names = Names(model)
        self.inside: dict[ir.Node, list[ir.Node]] = {}
        for inner, outer in outer_nodes(model).items():
            self.inside.setdefault(outer, []).append(inner)
        values = [*model.graph.inputs, *model.graph.initializers.values()]
        values += [output for node in model.graph for output in node.outputs]
        self.floats = {v for v in values if v.dtype == _FLOAT and isinstance(v.type, ir.TensorType)}
        self.versions: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        _declare_types(self.model, self.floats, self.opset)
        for node in list(self.model.graph):
            form = self._form(node)
            self._connect(node, form)
            for position, output in enumerate(node.outputs):
                if output in self.floats and form is not None and position in form.outputs:
                    output.type = ir.TensorType(_HALF)
        self._keep_outputs()
        self._remove_unused()

    # -- nodes

    def _form(self, node: ir.Node) -> HalfForm | None:
        """The float16 form of ``node``, or None if it stays float32."""
        if str(node.name) in self.islands or node in self.inside or node.op_type == "QuantizeLinear":
            return None
        if node.op_type == "DequantizeLinear":
            return self._dequantizer(node)
        form = half_form(node, self.opset)
        if isinstance(form, str):
            return None
        if node.op_type == "Cast" and node.outputs[0] in self.floats:
            node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
        if node.op_type == "ConstantOfShape" and node.outputs[0] in self.floats:
            held = node.attributes.get("value")
            array = np.zeros(1, np.float32) if held is None else held.as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(to_half(array)))
        return form

    def _dequantizer(self, node: ir.Node) -> HalfForm | None:
        """Weights are restored to float16, if their scales can be; biases and activations to float32.

        The type of the scale is the type of the output; in float16 it has 11 bits, which a weight does
        not notice, but the bias of an integer kernel must have input scale times weight scale.
        """
        stored, scale = constant_array(node.inputs[0]), constant_array(node.inputs[1])
        if stored is None or scale is None or stored.dtype == np.int32 or lost(scale, each=True) > _LOSSY_SCALE:
            return None
        return HalfForm(frozenset({1}), frozenset({0}))

    def _connect(self, node: ir.Node, form: HalfForm | None) -> None:
        """Give ``node`` and the nodes inside it each float input in the type that they read."""
        for position, value in enumerate(node.inputs):
            if value is None or value not in self.floats or node.op_type in _ANY_TYPE:
                continue
            half = form is not None and position in form.inputs
            wanted = self._version(value, _HALF if half else _FLOAT)
            if wanted is not value:
                node.replace_input_with(position, wanted)
        for inner in self.inside.get(node, ()):
            for position, value in enumerate(inner.inputs):
                if value is not None and value in self.floats and value.dtype == _HALF:
                    inner.replace_input_with(position, self._version(value, _FLOAT))

    # -- values

    def _version(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """``value`` in float16 or float32, made once for all its readers."""
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self.versions:
            array = constant_array(value)
            made = self._cast(value, dtype) if array is None else self._constant(value, array)
            self.versions[key] = made
        return self.versions[key]

    def _constant(self, value: ir.Value, array: np.ndarray) -> ir.Value:
        consumers = frozenset(node.op_type for node, _ in value.uses())
        tensor = ir.tensor(to_half(array, consumers), name=self.names.fresh(f"{value.name}_float16"))
        made = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(_HALF), const_value=tensor)
        self.model.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        producer = value.producer()
        source = value
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
            # A number that came out of a Cast is cast again from where it came: no Cast follows a Cast.
            source = producer.inputs[0]
        suffix = "float16" if dtype == _HALF else "float32"
        name = self.names.fresh(f"{value.name}_{suffix}")
        cast = ir.node("Cast", [source], {"to": int(dtype)}, name=f"{name}_Cast")
        made = cast.outputs[0]
        made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
        if producer is not None:
            self.model.graph.insert_after(producer, [cast])
        else:
            self.model.graph.insert_before(self.model.graph[0], [cast])
        return made

    # -- the border, and what is left over

    def _keep_outputs(self) -> None:
        """Outputs keep name and type: their float16 versions get another name, and a Cast the old one."""
        for position, output in enumerate(self.model.graph.outputs):
            if output not in self.floats or output.dtype != _HALF:
                continue
            restored = self._version(output, _FLOAT)
            name = str(output.name)
            output.name = self.names.fresh(f"{name}_float16")
            restored.name = name
            self.model.graph.outputs[position] = restored

    def _remove_unused(self) -> None:
        graph = self.model.graph
        for node in reversed(list(graph)):
            if node.op_type in ("Cast", "Constant") and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                graph.remove(node, safe=True)
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
        for (value, _), made in self.versions.items():
            # Where only the float16 weight is left, it takes over the name.
            if made.is_initializer() and str(value.name) not in graph.initializers and value.producer() is None:
                del graph.initializers[str(made.name)]
                made.name = value.name
                assert made.const_value is not None
                made.const_value.name = value.name
                graph.register_initializer(made)


def _declare_types(model: ir.Model, floats: set[ir.Value], opset: int) -> None:
    """Add outputs without a known type to ``floats`` where ONNX's rules make them follow a float32 input."""
    for node in model.graph:
        unknown = [output for output in node.outputs if output.dtype is None]
        if not unknown:
            continue
        form = half_form(node, opset)
        if isinstance(form, str) or not any(node.inputs[i] in floats for i in form.inputs):
            continue
        for position, output in enumerate(node.outputs):
            if output.dtype is None and position in form.outputs:
                output.type = ir.TensorType(_FLOAT)
                floats.add(output)
