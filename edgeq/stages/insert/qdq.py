"""Turn a float model and a plan into a QDQ model. No decision is taken here."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.affine import quantize, split_scale
from edgeq.errors import ModelError
from edgeq.graph import Names, constant_array, outer_nodes, set_initializer
from edgeq.qtypes import Decision, PerAxis, PerBlock, QParams, QuantPlan
from edgeq.stages.insert.dynamic import Ranged, multiply_ranged

__all__ = ["insert_qdq"]


def insert_qdq(model: ir.Model, plan: QuantPlan) -> ir.Model:
    """A new model with every decision of ``plan`` carried out; ``model`` is left as it was.

    Activations get one QuantizeLinear/DequantizeLinear pair each, weights become integer
    initializers, stored once, behind a DequantizeLinear of their own for each consumer (a shared one
    would not fuse), biases int32 ones. Arrays that did not change are shared with ``model``.

    Raises:
        ModelError: the plan names a tensor or node that the model does not have.
    """
    model = model.clone()
    performer = _Performer(model, plan)
    # A node that ranges its activations itself is replaced with its weight: its bias must be there before.
    for decision in sorted(plan, key=lambda d: d.role != "bias" or plan.dynamic.isdisjoint(d.consumers)):
        performer.perform(decision)
    performer.remove_unused_initializers()
    return model


class _Performer:
    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self.model = model
        self.plan = plan
        self.names = Names(model)
        self.nodes = {str(node.name): node for node in model.graph}
        self.outer = outer_nodes(model)
        self.restored: dict[str, ir.Value] = {}
        self.integers: dict[tuple[object, ...], ir.Value] = {}
        self.ranged = Ranged(model, self.names)
        self.values: dict[str, ir.Value] = {str(value.name): value for value in model.graph.inputs}
        self.values.update(model.graph.initializers)
        for node in model.graph:
            self.values.update({str(output.name): output for output in node.outputs})

    def perform(self, decision: Decision) -> None:
        if decision.role == "bias":
            self._bias(decision)
        elif decision.qparams is None:
            return
        elif decision.role == "weight":
            for consumer in decision.consumers:
                self._weight(self._node(consumer), decision)
        elif decision.role == "operand":
            self._operand(decision)
        else:
            self._activation(decision)

    def _node(self, name: str) -> ir.Node:
        if name not in self.nodes:
            raise ModelError(f"the plan names the node {name!r}, which the model does not have")
        return self.nodes[name]

    # -- activations

    def _operand(self, decision: Decision) -> None:
        """A second pair behind the first: its consumers alone read the tensor in another type."""
        held, qparams = self.restored.get(decision.tensor), decision.qparams
        if held is None:
            raise ModelError(f"the plan converts {decision.tensor!r}, which is not quantized")
        assert qparams is not None
        consumers = [self._node(consumer) for consumer in decision.consumers]
        name = self.names.fresh(f"{decision.tensor}_{qparams.spec.dtype.name}")
        pair, restored = self._pair(name, held, qparams)
        producer = held.producer()
        assert producer is not None
        for node in consumers:
            self._reconnect(node, held, restored)
        self.model.graph.insert_after(producer, pair)

    def _activation(self, decision: Decision) -> None:
        value = self.values.get(decision.tensor)
        if value is None:
            raise ModelError(f"the plan names the tensor {decision.tensor!r}, which the model does not have")
        assert decision.qparams is not None
        name = decision.tensor
        pair, restored = self._pair(name, value, decision.qparams)
        self.restored[name] = restored
        graph, producer = self.model.graph, value.producer()
        for consumer in decision.consumers:
            self._reconnect(self._node(consumer), value, restored)
        if producer is not None:
            graph.insert_after(producer, pair)
        else:
            graph.insert_before(graph[0], pair)
        # A tensor that float code computes stays the model's output as it is.
        if value.is_graph_output() and producer is not None and name in self.plan.produced:
            self._hand_over_output(value, restored)

    def _pair(self, name: str, value: ir.Value, qparams: QParams) -> tuple[list[ir.Node], ir.Value]:
        """A QuantizeLinear and a DequantizeLinear behind ``value``, not yet in the graph, and what they restore."""
        scale, zero = self._parameters(name, qparams)
        quantize_node = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}_QuantizeLinear")
        quantized = quantize_node.outputs[0]
        restore_node = ir.node("DequantizeLinear", [quantized, scale, zero], name=f"{name}_DequantizeLinear")
        self._declare(quantized, self.names.fresh(f"{name}_quantized"), value, qparams.spec.dtype.dtype)
        restored = restore_node.outputs[0]
        self._declare(restored, f"{name}_dequantized", value, np.dtype(np.float32))
        return [quantize_node, restore_node], restored

    def _reconnect(self, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
        """Let ``node``, and what is inside its subgraphs, read ``new`` in place of ``old``."""
        for reader, position in list(old.uses()):
            if self.outer.get(reader, reader) is node:
                reader.replace_input_with(position, new)

    def _hand_over_output(self, value: ir.Value, restored: ir.Value) -> None:
        """The dequantized tensor becomes the graph's output, under the output's name."""
        name = str(value.name)
        value.name = self.names.fresh(f"{name}_float")
        restored.name = name
        self.values[name] = value
        for position, output in enumerate(self.model.graph.outputs):
            if output is value:
                self.model.graph.outputs[position] = restored

    @staticmethod
    def _declare(value: ir.Value, name: str, like: ir.Value, dtype: np.dtype) -> None:
        value.name = name
        value.shape = like.shape
        value.type = ir.TensorType(ir.DataType.from_numpy(dtype))

    # -- constants

    def _weight(self, node: ir.Node, decision: Decision) -> None:
        value, qparams = self.values[decision.tensor], decision.qparams
        assert qparams is not None
        array = self.plan.weights.get(decision.tensor, constant_array(value))
        if array is None:
            raise ModelError(f"the plan calls {decision.tensor!r} a weight, but it is no constant")
        stem = decision.tensor if len(decision.consumers) == 1 else f"{node.name}/{decision.tensor}"
        if str(node.name) in self.plan.dynamic:
            self._ranged(node, decision.tensor, stem, array, qparams)
            return
        stored = self._stored(decision.tensor, stem, array, qparams)
        if node.op_type == "Gather" and isinstance(qparams.spec.granularity, PerAxis):
            self._table(node, stored, qparams)
            return
        restored = self._dequantize(stem, stored, qparams, before=node, shape=array.shape)
        for position, operand in enumerate(node.inputs):
            if operand is value:
                node.replace_input_with(position, restored)

    def _stored(self, tensor: str, stem: str, array: np.ndarray, qparams: QParams) -> ir.Value:
        """The integers of a weight, once for all that quantize it alike.

        Each reader has a DequantizeLinear of its own: integer kernels fuse with it (measured: ONNX
        Runtime 1.32 on x86-64 and with the kernels of Arm, QNN 2.7, the same outputs). MatMulNBits takes
        the integers themselves, and ONNX Runtime makes it of weights that nobody else reads only, so
        weights in blocks of float scales are copied.
        """
        key = (tensor, qparams.spec, qparams.scale.tobytes(), qparams.zero_point.tobytes())
        granularity = qparams.spec.granularity
        alone = isinstance(granularity, PerBlock) and granularity.scale_bits is None
        if alone or key not in self.integers:
            name = self.names.fresh(f"{stem}_quantized")
            self.integers[key] = set_initializer(self.model, name, quantize(array, qparams))
        return self.integers[key]

    def _ranged(self, node: ir.Node, tensor: str, stem: str, array: np.ndarray, qparams: QParams) -> None:
        """The product with activations whose range is found at run time; new nodes take the place of ``node``."""
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
            levels = np.ascontiguousarray(quantize(array, qparams).T)
            stored = set_initializer(self.model, self.names.fresh(f"{stem}_quantized"), levels)
        else:
            stored = self._stored(tensor, stem, array, qparams)
        scale, zero = self._parameters(stem, qparams)
        result = multiply_ranged(self.model, node, stored, scale, zero, self.ranged, self.names)
        self.values[str(result.name)] = result

    def _table(self, node: ir.Node, stored: ir.Value, qparams: QParams) -> None:
        """Look the rows up in integers and dequantize only those: the scale is per column, so both commute."""
        output = node.outputs[0]
        name = str(output.name)
        rank = None if output.shape is None else len(output.shape)
        if rank is None:
            raise ModelError(f"the rank of {name!r} is unknown, so the table of {node.name!r} cannot be quantized")
        scale, zero = self._parameters(f"{node.name}_table", qparams)
        node.replace_input_with(0, stored)
        restore = ir.node(
            "DequantizeLinear", [output, scale, zero], {"axis": rank - 1}, name=f"{node.name}_rows_DequantizeLinear"
        )
        restored = restore.outputs[0]
        restored.shape, restored.type = output.shape, ir.TensorType(ir.DataType.FLOAT)
        ir.convenience.replace_all_uses_with(output, restored, replace_graph_outputs=True)
        restore.replace_input_with(0, output)
        self.model.graph.insert_after(node, [restore])
        output.name, restored.name = self.names.fresh(f"{name}_rows"), name
        output.type = ir.TensorType(ir.DataType.from_numpy(qparams.spec.dtype.dtype))
        self.values[name] = restored

    def _bias(self, decision: Decision) -> None:
        node = self._node(decision.consumers[0])
        # The decision may name a bias of the node's own that is not there yet; what it reads is its bias.
        array = self.plan.weights.get(decision.tensor)
        changed = array is not None
        if array is None:
            array = constant_array(node.inputs[2] if len(node.inputs) > 2 else None)
        if array is None:  # computed at run time: the decision says so
            return
        if decision.qparams is None:
            if changed:
                # An Add that holds the bias of a MatMul reads it where it pleases.
                reads = [
                    i for i, value in enumerate(node.inputs) if value is not None and value.name == decision.tensor
                ]
                bias = set_initializer(self.model, self.names.fresh(decision.tensor), array)
                self._set_bias(node, bias, reads[0] if reads else 2)
            return
        qparams = decision.qparams
        levels = np.rint(array.astype(np.float64) / qparams.scale.astype(np.float64))
        integers = np.clip(levels, -(2**31) + 1, 2**31 - 1).astype(np.int32)
        stored = set_initializer(self.model, self.names.fresh(f"{decision.tensor}_quantized"), integers)
        self._set_bias(
            node, self._dequantize(decision.tensor, stored, qparams, before=node, shape=integers.shape, zero=False)
        )

    @staticmethod
    def _set_bias(node: ir.Node, bias: ir.Value, position: int = 2) -> None:
        if len(node.inputs) <= position:
            node.resize_inputs(position + 1)
        node.replace_input_with(position, bias)

    def _dequantize(
        self,
        stem: str,
        stored: ir.Value,
        qparams: QParams,
        *,
        before: ir.Node,
        shape: tuple[int, ...],
        zero: bool = True,
    ) -> ir.Value:
        granularity = qparams.spec.granularity
        scale, zero_point = self._parameters(stem, qparams)
        if isinstance(granularity, PerBlock) and granularity.scale_bits is not None:
            scale = self._block_scale(stem, qparams.scale, granularity, before=before)
        attributes: dict[str, int] = {}
        if isinstance(granularity, PerAxis):
            attributes = {"axis": granularity.axis}
        elif isinstance(granularity, PerBlock):
            attributes = {"axis": granularity.axis, "block_size": granularity.size}
        inputs = [stored, scale, zero_point] if zero else [stored, scale]
        node = ir.node("DequantizeLinear", inputs, attributes, name=self.names.fresh(f"{stem}_DequantizeLinear"))
        value = node.outputs[0]
        value.name = self.names.fresh(f"{stem}_dequantized")
        value.shape, value.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.insert_before(before, [node])
        return value

    def _block_scale(self, stem: str, scale: np.ndarray, granularity: PerBlock, *, before: ir.Node) -> ir.Value:
        """The scale as integers per block, dequantized by a float per channel."""
        steps, channel = split_scale(scale, granularity)
        stored = set_initializer(self.model, self.names.fresh(f"{stem}_block_scale"), steps)
        per_channel = set_initializer(self.model, self.names.fresh(f"{stem}_channel_scale"), channel)
        name = self.names.fresh(f"{stem}_scale_DequantizeLinear")
        node = ir.node("DequantizeLinear", [stored, per_channel], {"axis": 1 - granularity.axis}, name=name)
        value = node.outputs[0]
        value.name = self.names.fresh(f"{stem}_scale_dequantized")
        value.shape, value.type = ir.Shape(steps.shape), ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.insert_before(before, [node])
        return value

    def _parameters(self, stem: str, qparams: QParams) -> tuple[ir.Value, ir.Value]:
        scale = set_initializer(self.model, self.names.fresh(f"{stem}_scale"), qparams.scale)
        zero = set_initializer(self.model, self.names.fresh(f"{stem}_zero_point"), qparams.zero_point)
        return scale, zero

    def remove_unused_initializers(self) -> None:
        outputs = set(self.model.graph.outputs)
        for name, value in list(self.model.graph.initializers.items()):
            if not value.uses() and value not in outputs:
                del self.model.graph.initializers[name]
