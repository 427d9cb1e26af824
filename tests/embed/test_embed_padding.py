"""Generated tests in Kotlin and Swift leave out what is computed for padding; they are run, with a stand-in model.

Those in Python and C, of the page and of React Native are run beside the other tests of their platforms.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from android_tools import JUNIT, KOTLIN, compile_kotlin, needs_android_tools, run
from embed_models import MakeBundle
from embed_texts import TOKENIZERS, make_padded_bundle, make_text_bundle, move_reference
from swift_tools import HERE, check, swiftc

import edgeq
from edgeq.interface import LogitsOutput
from edgeq.report import LIMIT_DB
from edgeq.stages.embed.sample_tokens import SampleTokens, sample_tokens
from edgeq.stages.run.validate import validate

ANSWERS = """
package edgeq.tiny

class Outputs(val vectors: FloatArray)

/** Gives each token its id, mask, segment and position. */
class Tiny : AutoCloseable {
    val provider = "CPUExecutionProvider"

    fun run(vararg parts: LongArray, batch: Int, length: Int): Outputs {
        check(parts.all { it.size == batch * length })
        return Outputs(parts[0].indices.flatMap { at -> parts.map { it[at].toFloat() } }.toFloatArray())
    }

    override fun close() = Unit

    companion object {
        fun open(context: Any) = Tiny().also { check(context == "app") }
    }
}
"""
REGISTRY = """
package androidx.test.platform.app

import java.io.File

class Assets {
    fun open(name: String) = File(System.getProperty("assets"), name).inputStream()
}

class Package(val assets: Assets)

class Instrumentation {
    val targetContext = "app"
    val context = Package(Assets())
}

object InstrumentationRegistry {
    fun getInstrumentation() = Instrumentation()
}

fun main() = edgeq.tiny.TinyTest().answersAsRecorded()
"""


def test_what_tests_leave_out_follows_the_samples(make_bundle: MakeBundle, tmp_path: Path) -> None:
    padded = sample_tokens(make_padded_bundle(tmp_path / "padded"))
    assert padded == SampleTokens(mask=1, numbers={"vectors": 4})
    pooled = LogitsOutput(name="vectors", classes=4)
    whole = make_text_bundle(tmp_path / "whole", TOKENIZERS["uncased"], output=pooled)
    assert sample_tokens(whole) is None
    assert sample_tokens(make_bundle(names=("attention_mask",), shape=(1, 3))) is None


def test_a_validation_leaves_out_the_same(tmp_path: Path) -> None:
    report = validate(make_padded_bundle(tmp_path / "bundle"), latency=False, memory=False)
    assert {metric.name: metric.value for metric in report.metrics} == {"cosine": 1, "SQNR": LIMIT_DB}


@pytest.mark.slow
@needs_android_tools
def test_kotlins_own_test_leaves_padding_out(tmp_path: Path) -> None:
    bundle = make_padded_bundle(tmp_path / "bundle")
    module = edgeq.embed(bundle.path, platform="android", output=tmp_path / "module").path
    (tmp_path / "Tiny.kt").write_text(ANSWERS)
    (tmp_path / "Registry.kt").write_text(REGISTRY)
    stub = HERE / "android_stubs" / "AndroidJUnit4.kt"
    tests = [module / "src" / "androidTest" / "kotlin", tmp_path / "Tiny.kt", tmp_path / "Registry.kt", stub]
    compile_kotlin(tests, tmp_path / "tests.jar")
    paths = os.pathsep.join(map(str, (tmp_path / "tests.jar", KOTLIN / "kotlin-stdlib.jar", JUNIT)))
    assets = f"-Dassets={module / 'src' / 'androidTest' / 'assets'}"
    command = ["java", assets, "-cp", paths, "androidx.test.platform.app.RegistryKt"]
    for of_padding in (True, False):
        run(command)
        move_reference(module, of_padding=of_padding)
    with pytest.raises(AssertionError, match=r"vectors: .* dB, recorded 100\.0"):
        run(command)


SWIFT_MAIN = """
import XCTest
XCTMain([testCase([("samples", TinyTests.testOutputsAreAsCloseToFloatAsTheyWere)])])
"""


@pytest.mark.slow
def test_swifts_own_test_leaves_padding_out(tmp_path: Path) -> None:
    bundle = make_padded_bundle(tmp_path / "bundle")
    project = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out").path
    check(project, tmp_path / "modules")
    (sources,), (tests,) = ((project / folder).iterdir() for folder in ("Sources", "Tests"))
    stand_in = tmp_path / "modules" / "runtime.o"
    runtime = HERE / "swift" / "OnnxRuntimeBindings.swift"
    swiftc("-emit-object", "-parse-as-library", "-module-name", "OnnxRuntimeBindings", "-o", stand_in, runtime)
    (tmp_path / "main.swift").write_text(SWIFT_MAIN)
    parts = []
    for file in tests.glob("*.swift"):  # all in one module, as nothing imports a program
        parts.append(tmp_path / file.name)
        parts[-1].write_text(re.sub("@testable import .*", "", file.read_text()))
    parts += [*sources.glob("*.swift"), tmp_path / "modules" / "Bundle.swift", tmp_path / "main.swift", stand_in]
    swiftc("-I", tmp_path / "modules", "-o", tmp_path / "samples-test", *parts)
    (tmp_path / "Assets").symlink_to(sources / "Assets")  # beside the program, as in a bundle
    shutil.copytree(tests / "samples", tmp_path / "samples")
    command = [*shlex.split(os.environ.get("EDGEQ_SWIFT_RUN", "")), str(tmp_path / "samples-test")]
    for of_padding in (True, False):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        move_reference(tmp_path / "samples", of_padding=of_padding)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "vectors on" in done.stdout + done.stderr
    assert done.returncode != 0
