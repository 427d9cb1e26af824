"""ONNX Runtime's WebGPU provider on SwiftShader, which computes a GPU's work on the processor.

SwiftShader comes out of Debian's chromium-common and has no 16-bit floats: models that have some are
widened to 32 bits. Mesa's lavapipe (22.3) is no choice: the provider's Dawn refuses it.
"""

from __future__ import annotations

import ctypes.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.progress import Progress
from edgeq.sandbox.environments import fetch_debian
from edgeq.sandbox.protocol import Outcome, Task
from edgeq.sandbox.venvs import VenvSandbox
from edgeq.sandbox.widened import say_widened, widen

__all__ = ["WebGpuSandbox"]

_SYSTEM = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
_ICD = ("usr/lib/chromium/vk_swiftshader_icd.json", "usr/lib/chromium/libvk_swiftshader.so")


class WebGpuSandbox(VenvSandbox):
    """The environment ``webgpu`` with a Vulkan loader and SwiftShader: the system's, or out of Debian's packages."""

    def __init__(self) -> None:
        super().__init__("webgpu", quick=False)

    def unusable(self) -> str | None:
        tools = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
        if tools and not (_SYSTEM.exists() and _has_loader()):
            return f"SwiftShader and libvulkan are fetched with {' and '.join(tools)}, which this system lacks"
        return super().unusable()

    def missing(self) -> str | None:
        folder = self._folder()
        if folder is not None and not (_icd(folder).exists() and _has_loader(folder)):
            return "the system's SwiftShader or libvulkan, which were there at the installation, are gone"
        return super().missing()

    def run(
        self, tasks: Sequence[Task], *, arguments: Mapping[str, str] | None = None, timeout_s: float = 300.0
    ) -> list[Outcome]:
        with tempfile.TemporaryDirectory(prefix="edgeq-profile-") as folder:
            asked = {**(arguments or {}), "profile": str(Path(folder) / "run")}
            widened = widen(tasks, Path(folder))
            return say_widened(tasks, widened, super().run(widened, arguments=asked, timeout_s=timeout_s))

    def _add(self, folder: Path, progress: Progress) -> None:
        if not _SYSTEM.exists():
            fetch_debian("chromium-common", folder, _ICD, progress)
        if not _has_loader():
            fetch_debian("libvulkan1", folder, ("usr/lib/*/libvulkan.so.1",), progress)

    def _variables(self, folder: Path) -> dict[str, str]:
        return {
            "VK_ICD_FILENAMES": str(_icd(folder)),
            "LD_LIBRARY_PATH": str(folder),
            "XDG_RUNTIME_DIR": tempfile.gettempdir(),
        }


def _icd(folder: Path) -> Path:
    own = folder / _SYSTEM.name
    return own if own.exists() else _SYSTEM


def _has_loader(folder: Path | None = None) -> bool:
    return ctypes.util.find_library("vulkan") is not None or bool(folder and (folder / "libvulkan.so.1").exists())
