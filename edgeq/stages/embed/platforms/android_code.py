"""A model's signature in Kotlin: identifiers, types, and the expressions for shapes and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeq.escape import Foreign, comment
from edgeq.stages.embed.names import KOTLIN, camel
from edgeq.stages.embed.platforms.android_runtime import KotlinType, kotlin_type
from edgeq.stages.embed.signature import Signature, Size, Tensor

__all__ = ["Code", "SizeView", "TensorView", "kotlin_code"]

_LOCALS = ("environment", "session", "provider", "feeds", "result", "outputs", "labels", "close", "run", "top", "open")
"""Names that the template itself uses where those of tensors are."""


@dataclass(frozen=True)
class TensorView:
    """A tensor as templates see it.

    ``id`` is its identifier, ``shape_id`` that of its shape, for outputs whose shape varies. ``dims`` are Kotlin
    expressions of its dimensions, as far as the parameters tell them.
    """

    tensor: Tensor
    id: str
    type: KotlinType
    dims: tuple[str, ...] = ()
    shape_id: str | None = None

    @property
    def name(self) -> Foreign:
        return self.tensor.name

    @property
    def text(self) -> str:
        """Such as ``float32[batch, 3, 224, 224]``, for comments."""
        return f"{self.tensor.dtype}[{', '.join(comment(str(dim)) for dim in self.tensor.shape)}]"

    @property
    def shape(self) -> str:
        """An expression of type LongArray."""
        return f"longArrayOf({', '.join(d if d.isdigit() else f'{d}.toLong()' for d in self.dims)})"

    @property
    def create(self) -> str:
        """An expression of type OnnxTensor, for inputs."""
        if self.type.half:
            values = f"Fp16Conversions.convertFloatBufferToFp16Buffer({self.id})"
            return f"OnnxTensor.createTensor(OrtRuntime.environment, {values}, {self.shape}, OnnxJavaType.FLOAT16)"
        kind = f", OnnxJavaType.{self.type.java_type}" if self.type.java_type else ""
        return f"OnnxTensor.createTensor(OrtRuntime.environment, {self.id}, {self.shape}{kind})"

    @property
    def count(self) -> str:
        """An expression of type Long: the number of elements."""
        return " * ".join(("1L", *self.dims))


@dataclass(frozen=True)
class SizeView:
    """A parameter that chooses a dynamic dimension of the inputs.

    ``array_default`` and ``buffer_default`` are expressions of its default, if it has one, where inputs are arrays
    and where they are buffers.
    """

    name: Foreign
    id: str
    text: str
    array_default: str | None
    buffer_default: str | None


@dataclass(frozen=True)
class Code:
    """All that the templates of code need of a signature."""

    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    sizes: tuple[SizeView, ...]
    has_fallback: bool = False

    @property
    def imports(self) -> frozenset[str]:
        """What the class of the model imports for its tensors."""
        types = [tensor.type for tensor in self.inputs]
        names = {"android.content.Context", "java.io.IOException"}
        names |= {"android.util.Log"} if self.has_fallback else set()
        names |= {f"ai.onnxruntime.{name}" for name in ("OnnxTensor", "OrtException", "OrtSession")}
        names |= {f"java.nio.{type_.buffer}" for type_ in types}
        names |= {"ai.onnxruntime.OnnxJavaType" for type_ in types if type_.java_type or type_.half}
        names |= {"ai.onnxruntime.platform.Fp16Conversions" for type_ in types if type_.half}
        return frozenset(names)

    @property
    def read_types(self) -> tuple[KotlinType, ...]:
        """One type per kind of array that outputs are copied to, in order."""
        by_name = {tensor.type.read: tensor.type for tensor in self.outputs}
        return tuple(by_name[name] for name in sorted(by_name))


def kotlin_code(signature: Signature, *, has_fallback: bool = False) -> Code:
    """Names are valid, unique and no keywords; raises ConfigError for a type that the Java API does not have."""
    input_ids = KOTLIN.identifiers((t.name for t in signature.inputs), camel, "input", _LOCALS)
    size_ids = KOTLIN.identifiers((s.name for s in signature.sizes), camel, "size", (*_LOCALS, *input_ids))
    sizes = {str(size.name): id_ for size, id_ in zip(signature.sizes, size_ids, strict=True)}
    ids = {str(tensor.name): id_ for tensor, id_ in zip(signature.inputs, input_ids, strict=True)}
    return Code(
        inputs=tuple(
            TensorView(tensor, ids[str(tensor.name)], kotlin_type(tensor), _dims(tensor, sizes))
            for tensor in signature.inputs
        ),
        outputs=_outputs(signature),
        sizes=tuple(_size(size, sizes, ids) for size in signature.sizes),
        has_fallback=has_fallback,
    )


def _outputs(signature: Signature) -> tuple[TensorView, ...]:
    ids = KOTLIN.identifiers((t.name for t in signature.outputs), camel, "output", _LOCALS)
    shapes = KOTLIN.identifiers((f"{t.name} shape" for t in signature.outputs), camel, "output", (*_LOCALS, *ids))
    return tuple(
        TensorView(tensor, id_, kotlin_type(tensor), shape_id=shape if tensor.dynamic else None)
        for tensor, id_, shape in zip(signature.outputs, ids, shapes, strict=True)
    )


def _dims(tensor: Tensor, sizes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(str(dim) if isinstance(dim, int) else sizes[str(dim)] for dim in tensor.shape)


def _size(size: Size, sizes: Mapping[str, str], ids: Mapping[str, str]) -> SizeView:
    array = buffer = None if size.default is None else str(size.default)
    if size.of is not None:
        factors = [*(sizes[str(dim)] for dim in size.known)]
        factors += [str(size.of.fixed_size)] if size.of.fixed_size != 1 or not factors else []
        divisor = factors[0] if len(factors) == 1 else f"({' * '.join(factors)})"
        part = "" if divisor == "1" else f" / {divisor}"
        name = ids[str(size.of.name)]
        array, buffer = f"{name}.size{part}", f"{name}.remaining(){part}"
    return SizeView(size.name, sizes[str(size.name)], comment(size.name), array, buffer)
