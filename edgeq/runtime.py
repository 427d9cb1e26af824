"""ONNX Runtime sessions: the runtime and the oracle of every stage. Never patched, never subclassed."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

# Telemetry is on by default since ONNX Runtime 1.29; it must be off before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

from edgeq.errors import MissingProviderError, ModelError, ProviderError
from edgeq.machine import usable_cores
from edgeq.target import CPU_PROVIDER

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Provider

__all__ = [
    "Optimization",
    "check_available",
    "open_session",
    "plugin_library",
    "reason",
    "register_plugin",
    "run_model",
    "session_options",
    "unavailable",
]

Optimization = Literal["all", "none"]

_FATAL = 4
ort.set_default_logger_severity(_FATAL)


def session_options(
    *,
    threads: int = 0,
    optimization: Optimization = "all",
    config: Mapping[str, str] | None = None,
) -> ort.SessionOptions:
    """Session options that behave the same everywhere.

    ``threads`` 0 means all cores. Idle threads do not spin, so that CPU time is time spent
    computing. ``optimization="none"`` gives the specification's numerics: no fusion, so a QDQ
    model computes in float between its Q/DQ pairs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    # A failure is raised as an exception with the same text: its line on stderr would be a second one.
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if optimization == "all"
        else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


@contextmanager
def open_session(
    model: ir.Model | str | os.PathLike[str],
    options: ort.SessionOptions | None = None,
    provider: Provider | None = None,
) -> Iterator[ort.InferenceSession]:
    """A session for a model in memory or a file, on ``provider`` (default: the CPU).

    A model too large for one protobuf goes through a temporary file with external data.

    Raises:
        ModelError: ONNX Runtime cannot load the model (unsupported operator, invalid graph).
        ProviderError: the provider's package is missing, offers no device, or refuses its options.
    """
    from edgeq import graph

    options = options or session_options()
    with ExitStack() as stack:
        payload: str | bytes
        if isinstance(model, (str, os.PathLike)):
            payload = os.fspath(model)
        elif graph.model_size(model) > graph.EXTERNAL_DATA_THRESHOLD:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeq-"))
            payload = str(Path(folder) / "model.onnx")
            graph.save_model(model, payload)
        else:
            payload = graph.to_bytes(model)
        if provider is not None and provider.registration == "plugin":
            devices = register_plugin(provider)
            options.add_provider_for_devices(devices, dict(provider.options))
            providers = None
        elif provider is not None and provider.name != CPU_PROVIDER:
            check_available(provider)
            providers = [(provider.name, dict(provider.options)), CPU_PROVIDER]
        else:
            providers = [CPU_PROVIDER]
        try:
            session = ort.InferenceSession(payload, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot load the model: {reason(error)}",
                where=os.fspath(model) if isinstance(model, (str, os.PathLike)) else None,
                remedy="check that every operator of the model exists in this version of ONNX Runtime",
            ) from None
        del payload
        if provider is not None and provider.name not in session.get_providers():
            raise ProviderError(
                f"{provider.name} could not be started with the options {dict(provider.options)}, "
                "so ONNX Runtime replaced it by the CPU",
                remedy="check the provider's options, such as the model of the chip",
            )
        # Without this, a provider that fails while running is silently replaced by the CPU.
        session.disable_fallback()
        yield session


def check_available(provider: Provider) -> None:
    """Raise ProviderError if ``provider`` cannot run here.

    ONNX Runtime itself only warns about a provider that its build lacks, and runs everything on the CPU.
    """
    if provider.registration == "plugin":
        register_plugin(provider)
    elif provider.name not in ort.get_available_providers():
        raise ProviderError(
            f"this build of ONNX Runtime {ort.__version__} has no {provider.name}; "
            f"it has {', '.join(ort.get_available_providers())}",
            remedy=f"install {provider.package}{provider.version} on a machine that supports it",
        )


def unavailable(provider: Provider) -> ProviderError | None:
    """Why ``provider`` cannot run here, or None if it can."""
    try:
        check_available(provider)
    except ProviderError as error:
        return error
    return None


def plugin_library(provider: Provider) -> str:
    """The path of a plugin provider's library; raises MissingProviderError if its package is not installed."""
    import importlib

    try:
        return importlib.import_module(provider.module or provider.package.replace("-", "_")).get_library_path()
    except ImportError:
        raise MissingProviderError(
            f"{provider.name} needs the package {provider.package}{provider.version}, which is not installed",
            remedy=f"pip install '{provider.package}{provider.version}'",
        ) from None


def register_plugin(provider: Provider) -> list[ort.OrtEpDevice]:
    """Register a plugin provider's library once, and return its devices.

    Raises:
        ProviderError: the package is not installed, or offers no device on this machine.
    """
    if not any(device.ep_name == provider.name for device in ort.get_ep_devices()):
        ort.register_execution_provider_library(provider.name, plugin_library(provider))
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise ProviderError(
            f"{provider.name} offers no device on this machine",
            remedy=f"check the requirements of {provider.package} (operating system, C library, hardware)",
        )
    return devices


def run_model(
    model: ir.Model | str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    *,
    outputs: Sequence[str] | None = None,
    optimization: Optimization = "none",
    config: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Run once on the CPU and return the outputs by name. For many runs, open a session."""
    with open_session(model, session_options(optimization=optimization, config=config)) as session:
        names = list(outputs or [output.name for output in session.get_outputs()])
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:
            raise ModelError(f"the model fails while running: {reason(error)}") from None


def reason(error: Exception) -> str:
    """ONNX Runtime's message without its prefix of error codes, such as ``[ONNXRuntimeError] : 1 : FAIL : ``."""
    text = str(error).strip() or type(error).__name__
    return " ".join(re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text).split())[:400]
