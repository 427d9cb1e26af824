"""Where a device's ONNX Runtime comes from, and that a wrong one is refused before it is brought there."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import pytest

from edgeq.devices.runtimes import ANDROID_RUNTIME, android_runtime, board_runtime, check_library
from edgeq.errors import ConfigError, ProviderError

AARCH64, X86_64, ARM = 183, 62, 40


def elf(machine: int, more: bytes = b"") -> bytes:
    """The header of a shared library, as far as it is read."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + machine.to_bytes(2, "little") + more


def write_aar(file: Path, libraries: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("AndroidManifest.xml", "<manifest/>")
        for abi, content in libraries.items():
            archive.writestr(f"jni/{abi}/libonnxruntime.so", content)
            archive.writestr(f"jni/{abi}/libonnxruntime4j_jni.so", b"")
    return file


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GRADLE_USER_HOME", raising=False)
    monkeypatch.delenv(ANDROID_RUNTIME, raising=False)


def named(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv(ANDROID_RUNTIME, str(file))


def test_the_library_of_an_aar_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, write_aar(tmp_path / "a.aar", {"arm64-v8a": elf(AARCH64, b"one"), "x86_64": elf(X86_64)}))
    first = android_runtime("arm64-v8a")
    assert first.read_bytes() == elf(AARCH64, b"one")
    made = first.stat().st_mtime_ns
    assert android_runtime("arm64-v8a") == first
    assert first.stat().st_mtime_ns == made
    assert android_runtime("x86_64").read_bytes() == elf(X86_64)
    named(monkeypatch, write_aar(tmp_path / "a.aar", {"arm64-v8a": elf(AARCH64, b"another")}))
    assert android_runtime("arm64-v8a").read_bytes() == elf(AARCH64, b"another")


def test_a_library_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libonnxruntime.so"
    library.write_bytes(elf(AARCH64))
    named(monkeypatch, library)
    assert android_runtime("arm64-v8a") == library


@pytest.mark.parametrize(
    "place",
    [
        ".gradle/caches/modules-2/files-2.1/com.microsoft.onnxruntime/onnxruntime-android/{v}/0a1b/onnxruntime-android-{v}.aar",
        ".m2/repository/com/microsoft/onnxruntime/onnxruntime-android/{v}/onnxruntime-android-{v}.aar",
    ],
    ids=["Gradle", "Maven"],
)
def test_what_an_apps_build_has_fetched_is_found_the_newest_first(tmp_path: Path, place: str) -> None:
    for version in ("1.9.0", "1.29.0", "1.28.1"):
        content = {"arm64-v8a": elf(AARCH64, version.encode())}
        write_aar(tmp_path / "home" / place.format(v=version), content)
    assert android_runtime("arm64-v8a").read_bytes().endswith(b"1.29.0")


def test_no_runtime() -> None:
    with pytest.raises(ProviderError) as caught:
        android_runtime("arm64-v8a")
    assert "com.microsoft.onnxruntime:onnxruntime-android" in str(caught.value)
    assert f"{ANDROID_RUNTIME}=FILE.aar" in str(caught.value)


def test_an_aar_without_the_phones_abi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, write_aar(tmp_path / "a.aar", {"x86_64": elf(X86_64), "armeabi-v7a": elf(ARM)}))
    with pytest.raises(ProviderError, match="holds no ONNX Runtime for arm64-v8a") as caught:
        android_runtime("arm64-v8a")
    assert "it has armeabi-v7a, x86_64" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (elf(X86_64), "the library is made for x86_64, the device is arm64-v8a"),
        (elf(243), r"made for another processor \(243\)"),
        (b"MZ and so on, a library of another system", "this is no library"),
        (b"", "this is no library"),
    ],
    ids=["x86-64", "RISC-V", "Windows", "empty"],
)
def test_a_library_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, what: str
) -> None:
    library = tmp_path / "libonnxruntime.so"
    library.write_bytes(content)
    named(monkeypatch, library)
    with pytest.raises(ProviderError, match=what):
        android_runtime("arm64-v8a")


def test_a_name_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, tmp_path / "none.aar")
    with pytest.raises(ConfigError, match="names no file"):
        android_runtime("arm64-v8a")


def test_a_damaged_aar_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aar = write_aar(tmp_path / "a.aar", {"arm64-v8a": elf(AARCH64, bytes(range(256)) * 40)})
    content = bytearray(aar.read_bytes())
    middle = content.index(b"jni/arm64-v8a/libonnxruntime.so") + 60
    content[middle : middle + 40] = bytes(40)
    aar.write_bytes(content)
    named(monkeypatch, aar)
    with pytest.raises(ProviderError, match="the AAR is damaged"):
        android_runtime("arm64-v8a")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.skipif(platform.system() != "Linux", reason="the wheel of Linux")
def test_this_machines_own_library_is_that_of_the_installed_package() -> None:
    library = board_runtime(platform.machine())
    assert "onnxruntime/capi" in library.as_posix()
    check_library(library, platform.machine())


@pytest.mark.slow
def test_another_machines_library_comes_out_of_its_wheel(tmp_path: Path) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    try:
        library = board_runtime(other)
    except ProviderError as error:
        pytest.skip(f"no wheel: {error.what}")
    check_library(library, other)
    assert library.is_relative_to(tmp_path / "cache")
    assert board_runtime(other) == library
