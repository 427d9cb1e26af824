"""What the Android build of ONNX Runtime offers, as data: its version, its providers, the types of its Java API."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.errors import ConfigError
from edgeq.stages.embed.signature import Tensor

__all__ = [
    "ABIS",
    "COMPILE_SDK",
    "GRADLE_PLUGIN",
    "KOTLIN_PLUGIN",
    "MIN_SDK",
    "PROVIDERS",
    "RUNTIME",
    "AndroidProvider",
    "KotlinType",
    "find_provider",
    "kotlin_type",
]

COMPILE_SDK, MIN_SDK = 36, 24
"""Android 16, and what onnxruntime-android 1.29 asks for at least (its manifest)."""

GRADLE_PLUGIN, KOTLIN_PLUGIN = "8.13.0", "2.2.20"
"""For building the module alone; in an app the app's own versions count. Not run here: no Maven repository."""

RUNTIME = "1.29.0"
"""Of com.microsoft.onnxruntime:onnxruntime-android.

Inspected: its Java API is what generated code is compiled against, its libraries are aligned to 16 KB, and the
WebGPU and XNNPACK providers are inside. It is also what Qualcomm's plugin 2.7.0 was built with (release notes of
onnxruntime-qnn v2.7.0). It runs models up to opset 24 and IR version 11 (the operators of ONNX 1.19; newer
releases of ONNX Runtime are supersets).
"""

ABIS = ("arm64-v8a", "armeabi-v7a", "x86", "x86_64")
"""What onnxruntime-android has libraries for; phones of today are the first."""


@dataclass(frozen=True)
class KotlinType:
    """A tensor's type in Kotlin: ``array`` and ``buffer`` are classes, ``java_type`` one of OnnxJavaType.

    ``java_type`` is None where the buffer's class says it. ``half``: 16-bit floats, which the app sees as 32-bit ones.
    """

    array: str
    buffer: str
    java_type: str | None = None
    half: bool = False

    @property
    def getter(self) -> str:
        """The property of OnnxTensor that gives its elements, such as ``floatBuffer``."""
        return self.buffer[0].lower() + self.buffer[1:]

    @property
    def read(self) -> str:
        """The name of the generated function that copies them, such as ``floats``."""
        return f"{self.array.removesuffix('Array').lower()}s"


_TYPES = {
    "float32": KotlinType("FloatArray", "FloatBuffer"),
    "float16": KotlinType("FloatArray", "FloatBuffer", half=True),
    "float64": KotlinType("DoubleArray", "DoubleBuffer"),
    "int64": KotlinType("LongArray", "LongBuffer"),
    "int32": KotlinType("IntArray", "IntBuffer"),
    "int16": KotlinType("ShortArray", "ShortBuffer"),
    "int8": KotlinType("ByteArray", "ByteBuffer", "INT8"),
    "uint8": KotlinType("ByteArray", "ByteBuffer", "UINT8"),
    "bool": KotlinType("ByteArray", "ByteBuffer", "BOOL"),
}


def kotlin_type(tensor: Tensor) -> KotlinType:
    """Raises ConfigError for a type that ONNX Runtime's Java API cannot pass."""
    if tensor.dtype not in _TYPES:
        raise ConfigError(
            f"ONNX Runtime's Java API cannot pass {tensor.dtype}, the type of {str(tensor.name)!r}",
            remedy=f"give the model a Cast at that place; it can pass {', '.join(_TYPES)}",
        )
    return _TYPES[tensor.dtype]


@dataclass(frozen=True)
class AndroidProvider:
    """How an app gets an execution provider.

    ``method`` is the one of SessionOptions that adds it, None for the CPU's, which is always there. A ``plugin``
    is a library that is registered with ONNX Runtime first. ``dependencies`` are Maven coordinates besides
    onnxruntime-android, ``vendor_libraries`` what the manifest must declare to see them on the device.
    """

    method: str | None = None
    plugin: str | None = None
    dependencies: tuple[str, ...] = ()
    vendor_libraries: tuple[str, ...] = ()


PROVIDERS = {
    "CPUExecutionProvider": AndroidProvider(),
    "XnnpackExecutionProvider": AndroidProvider("addXnnpack"),
    "WebGpuExecutionProvider": AndroidProvider("addWebGPU"),
    "QNNExecutionProvider": AndroidProvider(
        plugin="libonnxruntime_providers_qnn.so",
        dependencies=("com.qualcomm.qti:onnxruntime-android-qnn:2.7.0", "com.qualcomm.qti:qnn-runtime:2.51.0"),
        vendor_libraries=("libcdsprpc.so",),
    ),
}
"""What onnxruntime-android has inside, and the plugin that runs on it."""


def find_provider(name: str, target: str) -> AndroidProvider:
    """Raises ConfigError for a provider that no Android app can have."""
    if name not in PROVIDERS:
        raise ConfigError(
            f"the bundle is made for {target}: its provider {name} does not exist on Android",
            remedy="export the model again with --target android, or another target of Android",
        )
    return PROVIDERS[name]
