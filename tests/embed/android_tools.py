"""The real tools of an Android build, as ``make android-tools`` fetches them; tests skip where they are missing."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from install_android_tools import folder

TOOLS = folder()
ANDROID_JAR = TOOLS / "debian" / "usr" / "lib" / "android-sdk" / "platforms" / "android-23" / "android.jar"
DX = TOOLS / "debian" / "usr" / "lib" / "android-sdk" / "build-tools" / "debian" / "lib" / "dx.jar"
AAR = TOOLS / "onnxruntime.aar"
RUNTIME_JAR = TOOLS / "aar" / "classes.jar"
KOTLIN = TOOLS / "kotlin" / "package" / "lib"
JUNIT = Path("/usr/share/java/junit4.jar")

_PROGRAMS = ("aapt2", "apksigner", "java", "jar", "keytool", "unzip", "zipalign")
_MISSING = [name for name in _PROGRAMS if shutil.which(name) is None]
_MISSING += [path.name for path in (ANDROID_JAR, DX, AAR, RUNTIME_JAR, KOTLIN, JUNIT) if not path.exists()]

needs_android_tools = pytest.mark.skipif(
    bool(_MISSING), reason=f"not here: {', '.join(_MISSING)} (`make android-tools` fetches them)"
)


def run(command: Sequence[str | Path], **environment: str) -> str:
    """Output of a program; an assertion fails with its words if it does."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def kotlinc() -> list[str]:
    """The command of the Kotlin compiler."""
    compiler = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"
    return ["java", "-Xmx1g", "-cp", f"{KOTLIN}/*", compiler, "-no-stdlib", "-no-reflect"]


def compile_kotlin(sources: Sequence[Path], goal: Path, *, target: str = "17", more: Sequence[str | Path] = ()) -> str:
    """Compile against Android's and ONNX Runtime's real classes; warnings are errors. ``more`` are class paths."""
    paths = [KOTLIN / "kotlin-stdlib.jar", RUNTIME_JAR, ANDROID_JAR, JUNIT, *more]
    options = ["-Werror", "-jvm-target", target, "-classpath", ":".join(map(str, paths)), "-d", goal]
    return run([*kotlinc(), *options, *sources])


def link(manifest: Path, goal: Path, package: str) -> str:
    """Link a manifest and its resources; what Android 10's tool does not know yet is a warning."""
    text = manifest.read_text(encoding="utf-8").replace("<manifest ", f'<manifest package="{package}" ', 1)
    complete = goal.with_suffix(".xml")
    complete.write_text(text, encoding="utf-8")
    versions = ["--min-sdk-version", "24", "--target-sdk-version", "36"]
    command = ["aapt2", "link", "--warn-manifest-validation", "-I", ANDROID_JAR, "--manifest", complete, *versions]
    return run([*command, "-o", goal])


def stored_offsets(apk: Path) -> dict[str, int]:
    """Where the data of each entry that is not compressed begins."""
    offsets = {}
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as stream:
        for entry in archive.infolist():
            if entry.compress_type == zipfile.ZIP_STORED:
                stream.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<HH", stream.read(4))
                offsets[entry.filename] = entry.header_offset + 30 + name + extra
    return offsets


def load_alignments(library: bytes) -> set[int]:
    """Alignments of the segments of a 64-bit ELF file that are loaded."""
    (table,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", library, table + i * size) for i in range(count)]
    return {header[7] for header in headers if header[0] == 1}
