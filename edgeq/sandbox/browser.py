"""The browser: onnxruntime-web in a headless Chromium, on WebAssembly, or on WebGPU that SwiftShader computes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeq.errors import ConfigError, ProviderError
from edgeq.progress import Progress
from edgeq.sandbox.environments import installed_folder, installing
from edgeq.sandbox.process import Worker, python_command, run_tasks
from edgeq.sandbox.protocol import Outcome, Task
from edgeq.sandbox.widened import say_widened, widen

__all__ = [
    "RUNTIME",
    "Backend",
    "BrowserSandbox",
    "browser_sandboxes",
    "missing_parts",
    "open_browser",
    "remedy_for_missing",
]

Backend = Literal["wasm", "webgpu"]

_PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = _PACKAGE.replace("@", " ")
"""Name and version of the package that runs the models."""

_FOLDER = "onnxruntime-web"
_FILES = (
    "package.json",
    "README.md",
    "dist/ort.wasm.min.mjs",
    "dist/ort.webgpu.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
)
_BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
_APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--disable-crash-reporter",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",
    "--metrics-recording-only",
    "--password-store=basic",
    "--mute-audio",
    "--enable-blink-features=ForceEagerMeasureMemory",  # the page's memory at once, not when it suits
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # it reaches nothing but the page
)
_WITHOUT_GPU = ("--disable-gpu",)
_ANY_GPU = ("--enable-unsafe-webgpu", "--enable-features=Vulkan")  # the machine's own, or else SwiftShader
_SWIFTSHADER = (*_ANY_GPU, "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader")


@dataclass(frozen=True)
class BrowserSandbox:
    """onnxruntime-web with one of its backends, ``"wasm"`` or ``"webgpu"``.

    The argument ``threads`` (1) is the number of WebAssembly threads. ONNX Runtime for the web keeps no
    files, so that ``Task.optimized`` is never written.
    """

    name: str
    summary: str
    backend: Backend
    licence: str = "MIT (onnxruntime-web); the browser is the machine's own"
    gives: Literal["numbers", "build"] = "numbers"
    size_mb: int = 33
    quick: bool = False
    option: str | None = "threads"

    def unusable(self) -> str | None:
        return None

    def missing(self) -> str | None:
        return missing_parts()

    def install(self, progress: Progress) -> None:
        """Fetch onnxruntime-web with npm, which is needed for nothing else.

        Raises:
            ProviderError: there is no npm, it fails, or there is no browser.
        """
        if _runtime() is None:
            progress.start(f"fetching {RUNTIME}", None)
            _install_runtime()
            progress.finish()
        if _find_browser() is None:
            raise ProviderError(f"{self.missing()}", remedy=remedy_for_missing("wasm"))

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        threads = dict(arguments or {}).get("threads", "1")
        if set(arguments or {}) - {"threads"} or not threads.isdigit():
            raise ConfigError(f"the sandbox {self.name!r} takes the number of threads, not {dict(arguments or {})}")
        flags = _SWIFTSHADER if self.backend == "webgpu" else _WITHOUT_GPU
        with open_browser(self.backend, flags) as worker, tempfile.TemporaryDirectory(prefix="edgeq-model-") as work:
            # SwiftShader has no 16-bit floats; WebAssembly computes them as the CPU does.
            taken = widen(tasks, Path(work)) if self.backend == "webgpu" else list(tasks)
            found = run_tasks(worker, taken, arguments={"threads": threads}, timeout_s=timeout_s)
        version = f"{RUNTIME} ({self.backend})"  # of those that crashed
        return say_widened(tasks, taken, [replace(one, version=one.version or version) for one in found])


def missing_parts() -> str | None:
    """What a browser device lacks here, in words; None if nothing."""
    if _find_browser() is None:
        return "there is no Chromium or Chrome on the PATH"
    return None if _runtime() else f"{RUNTIME} is not installed"


def remedy_for_missing(backend: Backend) -> str:
    """What to do where ``missing_parts`` names one: edgeq fetches no browser."""
    if _find_browser() is None:
        return "install one with the system's package manager, such as `apt install chromium`"
    return f"edgeq doctor --install-provider browser-{backend}"


@contextmanager
def open_browser(backend: Backend, flags: Sequence[str] | None = None) -> Iterator[Worker]:
    """A worker whose page runs what it is asked for with onnxruntime-web; the browser ends with the block.

    ``flags`` are the browser's for the GPU; without them, WebGPU takes the machine's own where it has one.

    Raises:
        ProviderError: the browser or onnxruntime-web is missing.
    """
    browser, runtime = _find_browser(), _runtime()
    if browser is None or runtime is None:
        raise ProviderError(
            f"no model can be run in a browser here: {missing_parts()}",
            remedy=remedy_for_missing(backend),
        )
    if flags is None:
        flags = _ANY_GPU if backend == "webgpu" else _WITHOUT_GPU
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags = [*flags, "--no-sandbox"]  # Chromium's own sandbox does not start for root
    script = python_command(script="browser_worker.py")
    with (
        tempfile.TemporaryDirectory(prefix="edgeq-browser-", ignore_cleanup_errors=True) as profile,
        Worker([*script, str(runtime), backend, profile, browser, *_FLAGS, *flags]) as worker,
    ):
        yield worker


def _runtime() -> Path | None:
    return installed_folder(_FOLDER, [_PACKAGE, *_FILES])


def _find_browser() -> str | None:
    found = next((path for path in map(shutil.which, _BROWSERS) if path), None)
    if found is None and sys.platform == "darwin":
        found = next((path for path in _APPLICATIONS if Path(path).exists()), None)
    return found


def _install_runtime() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise ProviderError(
            f"{RUNTIME} is fetched with npm, which is not installed",
            remedy=f"install npm with the system's package manager ({platform.system()})",
        )
    with installing(_FOLDER, [_PACKAGE, *_FILES]) as folder, tempfile.TemporaryDirectory() as work:
        subprocess.run([npm, "pack", "--ignore-scripts", _PACKAGE], cwd=work, check=True, capture_output=True)
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            for name in _FILES:
                member = archive.getmember(f"package/{name}")
                member.name = Path(name).name
                archive.extract(member, folder, filter="data")


def browser_sandboxes() -> tuple[BrowserSandbox, ...]:
    """The two backends of onnxruntime-web."""
    return (
        BrowserSandbox("browser-wasm", "onnxruntime-web in the machine's own Chromium, on WebAssembly", "wasm"),
        BrowserSandbox(
            "browser-webgpu",
            "onnxruntime-web in the machine's own Chromium, on a GPU that SwiftShader computes (no 16-bit floats)",
            "webgpu",
        ),
    )
