"""A part of the model under its plan, as a torch module whose roundings, scales and biases can be learned."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgeq.affine import expand, fake_quantize
from edgeq.blocks import restrict_plan
from edgeq.qtypes import Decision, PerBlock, QParams, QuantPlan
from edgeq.revise import bias_home, weight_of, with_activation, with_bias, with_weight
from edgeq.stages.refine.learn.activations import Grids, clip_room
from edgeq.stages.refine.learn.rounding import SoftRounding
from edgeq.stages.refine.learn.settings import Settings
from edgeq.stages.refine.learn.tap import Tapped, tap
from edgeq.torch_graph import TorchGraph

__all__ = ["Part"]


class Part(nn.Module):
    """``part`` with every decision of ``plan`` carried out in float, and what is learned as parameters.

    Args:
        frozen: tensors (activations, weights, biases) that stay as they are in the plan.
        fixed_rounding: weights whose levels stay, though their scale may move.
        device: where it is computed.

    Raises:
        ModelError: a node has no form in torch, or the plan is not of this part.
    """

    def __init__(
        self,
        part: ir.Model,
        plan: QuantPlan,
        settings: Settings,
        *,
        frozen: Container[str] = (),
        fixed_rounding: Container[str] = (),
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.part, self.settings = part, settings
        sub = restrict_plan(plan, part)
        self.plan = _with_biases_behind(sub, part) if settings.biases else sub
        self.device = device or torch.device("cpu")
        self.tapped = tap(part, self.plan)
        self.graph = TorchGraph(self.tapped.model).to(self.device).requires_grad_(False)
        groups = _groups(self.tapped, part, self.plan.produced, frozen) if settings.activation_scales else {}
        self.grids = Grids(self.tapped.reads, groups, _room(self.tapped, part), self.device)
        self.roundings = nn.ModuleDict()
        self.shifts = nn.ParameterDict()
        self.units: dict[str, torch.Tensor] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self._places: dict[str, str] = {}
        self._layers: dict[str, str] = {}
        for name, decision in self.tapped.weights.items():
            self._add_weight(name, decision, frozen, fixed_rounding)
        for name, decision in self.tapped.biases.items():
            self._add_bias(name, decision, frozen)

    # -- what is learned

    def _add_weight(
        self, name: str, decision: Decision, frozen: Container[str], fixed_rounding: Container[str]
    ) -> None:
        qparams, array, settings = decision.qparams, self.tapped.arrays[name], self.settings
        assert qparams is not None
        layer = decision.consumers[0]
        rounded, spec = settings.rounding and decision.tensor not in fixed_rounding, qparams.spec
        scaled = settings.weight_scales and not spec.power_of_two and not isinstance(spec.granularity, PerBlock)
        # One grid for one layer: a table, an operand of an Add and what several nodes read stay.
        alone = weight_of(self.plan, self.part, layer) == decision and _readers(self.part, decision.tensor) == 1
        if not alone or decision.tensor in frozen or not (rounded or scaled):
            self.constants[name] = self._tensor(fake_quantize(array, qparams))
            return
        zero = int(np.asarray(qparams.zero_point).ravel()[0])
        original, on_grid = self.tapped.originals[name], np.allclose(fake_quantize(array, qparams), array, 1e-6, 0)
        # A weight that lies on the grid already was rounded by another method: that is where to start.
        given = on_grid and not np.array_equal(array, original)
        self._places[name] = place = f"weight_{len(self._places)}"
        self._layers[place] = layer
        self.roundings[place] = SoftRounding(
            self._tensor(original if given else array),
            self._tensor(expand(qparams.scale, spec, array.shape)),
            spec.qmin - zero,
            spec.qmax - zero,
            start=self._tensor(array) if given else None,
            stay=settings.stay,
            learn_rounding=rounded,
            learn_scale=scaled,
        )

    def _add_bias(self, name: str, decision: Decision, frozen: Container[str]) -> None:
        self.constants[name] = self._tensor(self.tapped.arrays[name])
        layer = next((n for n in self._heavy() if _bias_tensor(self.plan, self.part, n) == decision.tensor), None)
        unit = None if layer is None else _bias_unit(self.tapped, self.plan, self.part, layer)
        if not self.settings.biases or decision.tensor in frozen or layer is None or unit is None:
            return
        self._places[name] = place = f"bias_{len(self._places)}"
        self._layers[place] = layer
        self.shifts[place] = nn.Parameter(torch.zeros_like(self.constants[name]))
        shape = self.constants[name].shape
        self.units[place] = self._tensor(np.broadcast_to(unit, (max(shape.numel(), 1),)).reshape(shape))

    def _heavy(self) -> list[str]:
        return [str(n.name) for n in self.part.graph if weight_of(self.plan, self.part, str(n.name)) is not None]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float32)).to(self.device)

    def weights(self, *, hard: bool = False) -> dict[str, torch.Tensor]:
        """All quantized initializers and biases as they are now, by name in the tapped graph."""
        found = dict(self.constants)
        for name, place in self._places.items():
            if place in self.roundings:
                found[name] = self.roundings[place](hard=hard)
            else:
                found[name] = self.constants[name] + self.shifts[place] * self.units[place]
        return found

    def all_roundings(self) -> list[SoftRounding]:
        return [module for module in self.roundings.values() if isinstance(module, SoftRounding)]

    def soft(self) -> list[SoftRounding]:
        """Those whose rounding is learned."""
        return [module for module in self.all_roundings() if module.learn_rounding]

    def rates(self) -> list[tuple[str, list[nn.Parameter], float]]:
        """What is learned, by kind: its parameters and its rate."""
        settings, roundings = self.settings, self.all_roundings()
        groups: list[tuple[str, list[nn.Parameter], float]] = [
            ("rounding", [m.variable for m in roundings if m.variable.requires_grad], settings.rounding_rate),
            ("weight scales", [m.log_factor for m in roundings if m.log_factor.requires_grad], settings.scale_rate),
            ("activation scales", list(self.grids.logs), settings.scale_rate),
            ("biases", list(self.shifts.values()), settings.bias_rate),
        ]
        return [group for group in groups if group[1]]

    # -- running

    def run(self, feeds: Mapping[str, torch.Tensor], *, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The part's outputs by name, quantized; ``weights`` are those of ``weights()``."""
        wanted = self.tapped.outputs
        found = self.graph.run(feeds, list(wanted.values()), hook=self.grids, weights=weights)
        return {name: found[stands] for name, stands in wanted.items()}

    # -- what was learned

    @torch.no_grad()
    def decided(self) -> QuantPlan:
        """The part's plan with all that was learned: scales, weights on their grids, biases."""
        plan, arrays = self.plan, {name: t.cpu().numpy() for name, t in self.weights(hard=True).items()}
        for name, decision in self.tapped.reads.items():
            if decision.role == "activation" and decision.shares is None:
                plan = with_activation(plan, self.part, decision.tensor, self.grids.qparams(name))
        # Biases last: they are stored at the scales of data and weight.
        for name, place in self._places.items():
            if place in self.roundings:
                plan = with_weight(plan, self.part, self._layers[place], self._weight_qparams(name), arrays[name])
        for name, place in self._places.items():
            if place in self.shifts:
                plan = with_bias(plan, self.part, self._layers[place], arrays[name].ravel(), mode="int32")
        return plan

    def _weight_qparams(self, name: str) -> QParams:
        qparams, rounding = self.tapped.weights[name].qparams, self.roundings[self._places[name]]
        assert qparams is not None
        assert isinstance(rounding, SoftRounding)
        if not rounding.log_factor.requires_grad:
            return qparams
        scale = rounding.current_scale().cpu().numpy().astype(np.float32)
        return QParams(scale.reshape(qparams.scale.shape), qparams.zero_point, qparams.spec)


def _readers(model: ir.Model, tensor: str) -> int:
    value = model.graph.initializers.get(tensor)
    return 0 if value is None else len(value.uses()) + value.is_graph_output()


def _with_biases_behind(plan: QuantPlan, part: ir.Model) -> QuantPlan:
    """A decision about each bias that an Add behind a MatMul holds in float; the numbers stay."""
    decided = {decision.tensor for decision in plan}
    for node in part.graph:
        home = bias_home(plan, part, str(node.name)) if weight_of(plan, part, str(node.name)) is not None else None
        if home is not None and home.holder != node.name and home.tensor not in decided:
            plan = with_bias(plan, part, str(node.name), home.array, mode="float")
    return plan


def _bias_tensor(plan: QuantPlan, part: ir.Model, layer: str) -> str | None:
    home = bias_home(plan, part, layer)
    return None if home is None else home.tensor


def _room(tapped: Tapped, part: ir.Model) -> dict[str, float]:
    values = {str(output.name): output for node in part.graph for output in node.outputs}
    return {
        name: clip_room(values[decision.tensor], decision.qparams)
        for name, decision in tapped.reads.items()
        if decision.qparams is not None and decision.tensor in values
    }


def _groups(tapped: Tapped, part: ir.Model, produced: frozenset[str], frozen: Container[str]) -> dict[str, str]:
    """Which reads have a scale to be learned, by the tensor whose scale they share.

    Left out are groups with a fixed range or a scale that must be a power of two, those whose owner is elsewhere,
    those of a frozen tensor, and inputs that were quantized where they were computed: a scale moves for all or for
    none. What converts a tensor moves with it.
    """
    settled = {str(value.name) for value in part.graph.inputs} & produced
    here = {decision.tensor for decision in tapped.reads.values() if decision.role == "activation"}
    shares = {d.tensor: d.shares or d.tensor for d in tapped.reads.values() if d.role == "activation"}
    owners = {name: shares[decision.tensor] for name, decision in tapped.reads.items()}
    stuck: set[str] = set()
    for name, decision in tapped.reads.items():
        assert decision.qparams is not None
        fixed = decision.rule.startswith("fixed range of") or decision.qparams.spec.power_of_two
        if (
            fixed
            or decision.qparams.scale.ndim
            or owners[name] not in here
            or decision.tensor in settled
            or decision.tensor in frozen
        ):
            stuck.add(owners[name])
    return {name: owner for name, owner in owners.items() if owner not in stuck}


def _bias_unit(tapped: Tapped, plan: QuantPlan, part: ir.Model, layer: str) -> np.ndarray | None:
    """About what rounding the weights changes in the output of each channel: the step in which a bias is learned.

    ``s_w sqrt(K / 12)`` times a typical input of a quarter of its range; None where the input stays float.
    """
    weight = weight_of(plan, part, layer)
    data = next((d for d in reversed(tapped.reads.values()) if layer in d.consumers), None)
    if weight is None or weight.qparams is None or data is None or data.qparams is None:
        return None
    size = next(tapped.arrays[name].size for name, decision in tapped.weights.items() if decision == weight)
    low, high = data.qparams.real_range
    scale = weight.qparams.scale.astype(np.float64)
    step = scale if scale.ndim == 1 else scale.max()
    return np.asarray(step * np.sqrt(size / max(1, step.size) / 12) * (high - low) / 4)
