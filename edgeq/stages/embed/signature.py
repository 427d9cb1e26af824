"""What an app sees of a model: typed inputs and outputs, sizes that it may choose, labels, preparation of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from edgeq.bundle import Bundle, TensorEntry
from edgeq.errors import ConfigError
from edgeq.escape import Foreign, comment
from edgeq.recipe import Preprocess

__all__ = ["Signature", "Size", "Tensor", "read_signature"]


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name in the graph, numpy's name of its type, and its shape.

    A dynamic dimension is its name; one that has none in the model is called ``"NAME axis N"``.
    """

    name: Foreign
    dtype: str
    shape: tuple[int | Foreign, ...]

    @property
    def dynamic(self) -> tuple[Foreign, ...]:
        """Names of the dynamic dimensions, in order."""
        return tuple(dim for dim in self.shape if isinstance(dim, str))

    @property
    def text(self) -> str:
        """Such as ``float32[batch, 3, 224, 224]``, for comments."""
        return f"{self.dtype}[{', '.join(comment(str(dim)) for dim in self.shape)}]"

    @property
    def fixed_size(self) -> int:
        """The number of elements per element of the dynamic dimensions: the product of the fixed ones."""
        return math.prod(dim for dim in self.shape if isinstance(dim, int))


@dataclass(frozen=True)
class Size:
    """A dynamic dimension of the inputs: what an app may leave out, and what follows from what it passes.

    ``default`` is 1 for the first axis of all inputs (the batch), else None. ``of`` is an input in which it is the
    only dimension that is not given yet: its number of elements divided by ``fixed_size`` and the sizes ``known``.
    """

    name: Foreign
    default: int | None = None
    of: Tensor | None = None
    known: tuple[Foreign, ...] = ()


@dataclass(frozen=True)
class Signature:
    """A model as an app sees it.

    ``labels`` name the classes; ``labelled`` is the output whose last axis they belong to, if there is one.
    """

    name: Foreign
    task: str | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: tuple[Foreign, ...] = ()
    preprocess: Preprocess | None = None

    @cached_property
    def labelled(self) -> Tensor | None:
        return next((t for t in self.outputs if self.labels and t.shape and t.shape[-1] == len(self.labels)), None)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The dynamic dimensions of the inputs, in the order in which they can be found out."""
        left = list(dict.fromkeys(dim for tensor in self.inputs for dim in tensor.dynamic))
        first = {tensor.shape[0] if tensor.shape else None for tensor in self.inputs}
        found: list[Size] = []
        if len(first) == 1 and (batch := first.pop()) in left:
            found.append(Size(Foreign(batch), default=1))
            left.remove(Foreign(batch))
        while left:
            size = _follows(self.inputs, found) or Size(left[0])
            found.append(size)
            left.remove(size.name)
        return tuple(found)


def _follows(inputs: tuple[Tensor, ...], found: list[Size]) -> Size | None:
    """A dimension that the length of an input tells, once those in ``found`` are known."""
    names = {size.name for size in found}
    for tensor in inputs:
        unknown = [dim for dim in tensor.dynamic if dim not in names]
        if len(unknown) == 1 and tensor.fixed_size:
            return Size(unknown[0], of=tensor, known=tuple(dim for dim in tensor.dynamic if dim in names))
    return None


def read_signature(bundle: Bundle) -> Signature:
    """The signature of a bundle's model.

    Raises:
        ConfigError: the file of labels is not text.
    """
    manifest = bundle.manifest
    return Signature(
        name=Foreign(manifest.name),
        task=manifest.task,
        inputs=tuple(_tensor(entry) for entry in manifest.inputs),
        outputs=tuple(_tensor(entry) for entry in manifest.outputs),
        labels=_labels(bundle),
        preprocess=manifest.preprocess,
    )


def _tensor(entry: TensorEntry) -> Tensor:
    dims = (
        dim if isinstance(dim, int) else Foreign(f"{entry.name} axis {axis}" if dim is None else dim)
        for axis, dim in enumerate(entry.shape)
    )
    return Tensor(Foreign(entry.name), entry.dtype, tuple(dims))


def _labels(bundle: Bundle) -> tuple[Foreign, ...]:
    if bundle.manifest.labels is None:
        return ()
    file = bundle.file(bundle.manifest.labels)
    try:
        return tuple(Foreign(line) for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    except UnicodeDecodeError:
        raise ConfigError("the labels are not UTF-8 text", where=str(file), remedy="make the package again") from None
