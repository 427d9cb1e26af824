"""A signature in a language: identifiers, types, and expressions for shapes and sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgeq.errors import ConfigError
from edgeq.escape import Foreign, comment
from edgeq.stages.embed.names import Case, Language
from edgeq.stages.embed.signature import Signature, Size, Tensor

__all__ = ["Code", "Dialect", "SizeCode", "TensorCode"]

Type = TypeVar("Type")


@dataclass(frozen=True)
class TensorCode(Generic[Type]):
    """A tensor as templates see it; ``dims`` are expressions of an input's dimensions."""

    tensor: Tensor
    id: str
    type: Type
    dims: tuple[str, ...] = ()

    @property
    def name(self) -> Foreign:
        return self.tensor.name

    @property
    def text(self) -> str:
        return self.tensor.text

    @property
    def rank(self) -> int:
        return len(self.tensor.shape)


@dataclass(frozen=True)
class SizeCode:
    """A dynamic dimension of the inputs: ``default`` is an expression for where it is not given, if there is one."""

    id: str
    text: str
    default: str | None


@dataclass(frozen=True)
class Code(Generic[Type]):
    """All that templates need of a signature."""

    inputs: tuple[TensorCode[Type], ...]
    outputs: tuple[TensorCode[Type], ...]
    sizes: tuple[SizeCode, ...]

    @property
    def ids(self) -> dict[str, str]:
        """Identifiers by the names of tensors in the graph; an output's where an input has the same name."""
        return {str(tensor.name): tensor.id for tensor in (*self.inputs, *self.outputs)}


@dataclass(frozen=True)
class Dialect(Generic[Type]):
    """How a platform writes a signature.

    ``api`` passes the tensors, and has the ``types``, by numpy's names. ``local`` are names that the templates use
    where tensors are. ``size`` is the expression of a dimension by its identifier, ``length`` that of an input's
    number of elements; None: code cannot tell it.
    """

    language: Language
    case: Case
    api: str
    types: Mapping[str, Type]
    local: Collection[str] = ()
    size: str = "{}"
    length: str | None = None

    def write(self, signature: Signature) -> Code[Type]:
        """Names are valid, unique and no keywords; raises ConfigError for a type that the interface does not have."""
        identifiers, local = self.language.identifiers, self.local
        size_ids = identifiers((size.name for size in signature.sizes), self.case, "size", local)
        input_ids = identifiers((t.name for t in signature.inputs), self.case, "input", (*local, *size_ids))
        output_ids = identifiers((t.name for t in signature.outputs), self.case, "output", local)
        sizes = {str(size.name): id_ for size, id_ in zip(signature.sizes, size_ids, strict=True)}
        inputs = {str(tensor.name): id_ for tensor, id_ in zip(signature.inputs, input_ids, strict=True)}
        return Code(
            inputs=tuple(
                TensorCode(tensor, inputs[str(tensor.name)], self._type(tensor), self._dims(tensor, sizes))
                for tensor in signature.inputs
            ),
            outputs=tuple(
                TensorCode(tensor, id_, self._type(tensor))
                for tensor, id_ in zip(signature.outputs, output_ids, strict=True)
            ),
            sizes=tuple(
                SizeCode(sizes[str(size.name)], comment(size.name), self._default(size, sizes, inputs))
                for size in signature.sizes
            ),
        )

    def _type(self, tensor: Tensor) -> Type:
        if tensor.dtype not in self.types:
            raise ConfigError(
                f"{self.api} cannot pass {tensor.dtype}, the type of {str(tensor.name)!r}",
                remedy=f"give the model a Cast at that place; it can pass {', '.join(self.types)}",
            )
        return self.types[tensor.dtype]

    def _dims(self, tensor: Tensor, sizes: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(str(dim) if isinstance(dim, int) else self.size.format(sizes[str(dim)]) for dim in tensor.shape)

    def _default(self, size: Size, sizes: Mapping[str, str], inputs: Mapping[str, str]) -> str | None:
        if size.of is None or self.length is None:
            return None if size.default is None else str(size.default)
        factors = [self.size.format(sizes[str(dim)]) for dim in size.known]
        factors += [str(size.of.fixed_size)] if size.of.fixed_size != 1 or not factors else []
        return f"{self.length.format(inputs[str(size.of.name)])} / ({' * '.join(factors)})"
