"""What the Android build of ONNX Runtime offers, as data: its version, its providers, the types of its Java API."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.errors import ConfigError
from edgeq.stages.embed.signature import Tensor

__all__ = [
    "ABIS",
    "COMPILE_SDK",
    "GRADLE_PLUGIN",
    "MIN_SDK",
    "PACKAGE",
    "PLAY_BASE_BYTES",
    "PROVIDERS",
    "RUNTIME",
    "RUNTIME_BYTES",
    "AndroidProvider",
    "Dependency",
    "KotlinType",
    "find_provider",
    "kotlin_type",
]

PACKAGE, RUNTIME = "onnxruntime-android", "1.29.0"
"""Name and version of the Maven module of com.microsoft.onnxruntime.

Inspected: generated code is compiled against its classes, its libraries are aligned to 16 KB, and the WebGPU and
XNNPACK providers are inside. It is also what Qualcomm's plugin 2.7.0 was built with (its release notes). Newer ones
exist and run the same models.
"""

RUNTIME_BYTES = {
    "arm64-v8a": (32_232_640, 12_154_177),
    "armeabi-v7a": (22_809_264, 10_974_777),
    "x86": (38_535_920, 14_265_461),
    "x86_64": (38_573_088, 14_162_146),
}
"""Bytes of its libraries by processor, as installed and deflated (zlib, level 6), measured on the AAR."""

PLAY_BASE_BYTES = 150_000_000
"""Models above it go to an asset pack. Google Play's limit for a base module was 150 MB and is 200 MB, compressed."""

ABIS = tuple(RUNTIME_BYTES)
"""Android's names of processors; phones of today have the first."""

COMPILE_SDK, MIN_SDK = 36, 24
"""Android 16, and what onnxruntime-android 1.29 asks for at least (its manifest)."""

GRADLE_PLUGIN = "9.2.0"
"""For building the module alone; in an app the app's own version counts. Not run here: no Maven repository."""


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
class Dependency:
    """A Maven module that comes beside onnxruntime-android; ``variable`` holds its version in the build file."""

    module: str
    version: str
    variable: str


@dataclass(frozen=True)
class AndroidProvider:
    """How an app gets an execution provider.

    ``method`` is the one of SessionOptions that adds it, None for the CPU's, which is always there. A ``plugin``
    is a library that is registered with ONNX Runtime first. ``dependencies`` come besides onnxruntime-android,
    ``vendor_libraries`` are what the manifest must declare to see them on the device. ``desk_options`` are those of
    the bundle's options that stand for a chip where there is none: a device knows its own. ``abis`` are the
    processors that it exists for, ``min_sdk`` the lowest Android.
    """

    method: str | None = None
    plugin: str | None = None
    dependencies: tuple[Dependency, ...] = ()
    vendor_libraries: tuple[str, ...] = ()
    desk_options: frozenset[str] = frozenset()
    abis: tuple[str, ...] = ABIS
    min_sdk: int = MIN_SDK


PROVIDERS = {
    "CPUExecutionProvider": AndroidProvider(),
    "XnnpackExecutionProvider": AndroidProvider("addXnnpack"),
    "WebGpuExecutionProvider": AndroidProvider("addWebGPU"),
    "QNNExecutionProvider": AndroidProvider(
        plugin="libonnxruntime_providers_qnn.so",
        # Release notes of onnxruntime-qnn v2.7.0: built with ONNX Runtime 1.29.0, QAIRT 2.51.0. Its page names API 27.
        dependencies=(
            Dependency("com.qualcomm.qti:onnxruntime-android-qnn", "2.7.0", "qnnPluginVersion"),
            Dependency("com.qualcomm.qti:qnn-runtime", "2.51.0", "qnnRuntimeVersion"),
        ),
        vendor_libraries=("libcdsprpc.so",),
        desk_options=frozenset({"soc_model", "htp_arch", "device_id"}),
        abis=("arm64-v8a",),
        min_sdk=27,
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
