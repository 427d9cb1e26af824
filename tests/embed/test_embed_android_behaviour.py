"""What the Android module does on a phone, with stand-ins for ONNX Runtime and Android that fail when told to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from android_tools import KOTLIN, kotlinc, needs_android_tools, run
from embed_models import MakeBundle, with_fallback

import edgeq
from edgeq.target import Provider

pytestmark = [pytest.mark.slow, needs_android_tools]

FAKES = Path(__file__).with_name("android_fakes")
NO_CPU = "session.disable_cpu_ep_fallback=1"
COMPILE = f"open model.onnx {{ep.context_embed_mode=1, ep.context_enable=1, {NO_CPU}}}"
KEPT = f"open model.onnx.compiled.onnx {{{NO_CPU}}}"
ON_CPU = "open model.onnx {session.x=1}"


class Phone:
    """Runs scenarios, each in a process of its own."""

    def __init__(self, jar: Path, module: Path, scratch: Path) -> None:
        self._jar, self._assets, self._scratch = jar, module / "src" / "main" / "assets", scratch

    def does(self, *steps: str, files: str = "a") -> str:
        paths = os.pathsep.join(map(str, (self._jar, KOTLIN / "kotlin-stdlib.jar")))
        return run(["java", "-cp", paths, "MainKt", self._scratch / files, self._assets, *steps])


@pytest.fixture
def phone(make_bundle: MakeBundle, tmp_path: Path) -> Phone:
    provider = Provider(
        name="QNNExecutionProvider", package="onnxruntime-qnn", version=">=2.7", options={"backend_type": "htp"}
    )
    bundle = with_fallback(make_bundle(provider=provider, shape=(1, 3), labels=()))
    module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "module").path
    jar = tmp_path / "main.jar"
    sources = [module / "src" / "main" / "kotlin", FAKES]
    run([*kotlinc(), "-jvm-target", "17", "-classpath", KOTLIN / "kotlin-stdlib.jar", "-d", jar, *sources])
    return Phone(jar, module, tmp_path)


def test_what_happens_on_a_phone(phone: Phone) -> None:
    """All in one test, since compiling takes long."""
    # The NPU works: telemetry is off before ONNX Runtime is loaded, the model is compiled once and kept.
    shown = phone.does("open", "open", files="works")
    first, _, second = shown.partition("  close\n")
    assert first.index("setenv ORT_DISABLE_TELEMETRY=1") < first.index("OrtEnvironment is loaded")
    assert first.index("setenv ADSP_LIBRARY_PATH=/lib") < first.index("register QNNExecutionProvider")
    assert "provider QNNExecutionProvider {backend_type=htp}" in first
    assert COMPILE in first
    assert "open: QNNExecutionProvider [1.0, 2.0, 3.0]" in first
    assert "read edgeq/tiny/model/model.onnx" in first
    assert KEPT in second
    assert COMPILE not in second
    assert "read " not in second
    assert "register" not in second
    assert shown.count("file ") == 2  # the model, and what was compiled

    # The phone's libraries were updated: what was kept is refused, and made again.
    shown = phone.does("open", "break compiled", "open", "mend compiled", "open", files="updated")
    assert shown.count(COMPILE) == 2
    assert shown.count(KEPT) == 2
    assert "info compiling the model again" in shown
    assert shown.count("QNNExecutionProvider [1.0") == 3

    # The NPU cannot start, in three ways: the other graph runs on the CPU, and nothing half-made is left.
    for cause in ("plugin", "devices", "npu"):
        shown = phone.does(f"break {cause}", "open", files=cause)
        assert "open: CPUExecutionProvider [1.0, 2.0, 3.0]" in shown, cause
        assert "warning QNNExecutionProvider cannot run the model here" in shown, cause
        assert ON_CPU in shown, cause
        assert [line for line in shown.splitlines() if line.startswith("file ")] == ["file model.onnx"] * 2, cause

    # Asked for at once, and a new model replaces the old one's copy.
    shown = phone.does("open fallback", "another model", files="works")
    assert "open fallback: CPUExecutionProvider" in shown
    assert "threads 2" in shown
    assert "register" not in shown
    assert "another model: 0000000000000000/model.onnx" in shown
    assert shown.count("file model.onnx\n") == 2
    assert "compiled" not in shown
