"""Where the native runner's binary comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeq.devices import programs
from edgeq.errors import ProviderError


@pytest.fixture
def nothing_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No packaged binary, an empty cache, and no compiler."""
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(programs, "packaged_runner", lambda abi: tmp_path / "none")
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "NDK", "ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("abi", "remedy"),
    [("linux-aarch64", "ziglang"), ("linux-x86_64", "ziglang"), ("android-arm64-v8a", "ANDROID_NDK_HOME")],
)
def test_without_a_compiler_it_says_what_to_install(nothing_made: Path, abi: str, remedy: str) -> None:
    with pytest.raises(ProviderError, match=f"no runner for {abi}, and there is no compiler") as caught:
        programs.find_runner(abi)
    assert remedy in str(caught.value.remedy)


def compiler(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_is_compiled_once(nothing_made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = nothing_made / "count"
    write = f'echo x >> {count}; while [ "$1" != "-o" ]; do shift; done; echo made > "$2"'
    found = "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang"
    compiler(nothing_made / "ndk" / found, write)
    monkeypatch.setenv("ANDROID_NDK_HOME", str(nothing_made / "ndk"))
    first = programs.find_runner("android-arm64-v8a")
    assert first.read_text() == "made\n"
    assert programs.find_runner("android-arm64-v8a") == first
    assert count.read_text() == "x\n"


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    nothing_made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cc = compiler(nothing_made / "bin" / "broken", "echo 'main.c:3:1: error: no luck' >&2; exit 1")
    monkeypatch.setattr(programs, "_compilers", lambda abi: [[str(cc)]])
    with pytest.raises(ProviderError, match=r"does not compile: main\.c:3:1: error: no luck"):
        programs.find_runner("linux-x86_64")
    assert not [path for path in (nothing_made / "cache").rglob("*") if path.is_file()]
