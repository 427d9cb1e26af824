"""Environments are installed whole or not at all; and what is installed does what its summary says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from small_models import parse, quantized, samples, weights

from edgeq.errors import ConfigError, ProviderError
from edgeq.graph import save_model
from edgeq.progress import Silent
from edgeq.sandbox import Outcome, Task, find_sandbox, sandbox_names
from edgeq.sandbox.environments import (
    Environment,
    find_environment,
    installed_folder,
    installing,
    make_environment,
    sandbox_folder,
)
from edgeq.target import Provider, load_target, target_names

TINY = Environment(
    summary="",
    licence="",
    platforms=("Plan9 pdp11",),
    packages=("no-such-package==1",),
    licences={},
    size_mb=1,
)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sandboxes"


def installed(name: str) -> None:
    if why := find_sandbox(name).missing():
        pytest.skip(f"sandbox {name}: {why}")


def run(name: str, provider: Provider, folder: Path) -> tuple[Outcome, Outcome, list[np.ndarray]]:
    """What the sandbox makes of a float Conv, and of one in uint8; and the float answers."""
    model = parse("g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w) }", w=weights(4, 3, 3, 3))
    chain = quantized(model, "linux-x64", feed=samples(model, 4))
    save_model(model, folder / "float.onnx")
    save_model(chain.model, folder / "quantized.onnx")
    feeds = tuple(chain.feed)
    tasks = [Task(folder / f"{kind}.onnx", provider, feeds) for kind in ("float", "quantized")]
    first, second = find_sandbox(name).run(tasks)
    return first, second, [chain.run(feed)["y"] for feed in feeds]


def test_an_environment_appears_whole_with_its_stamp(own_cache: Path) -> None:
    stamp = ("a==1", "b==2")
    assert installed_folder("toy", stamp) is None
    with installing("toy", stamp) as folder:
        (folder / "file").write_text("1")
        assert installed_folder("toy", stamp) is None
    assert installed_folder("toy", stamp) == sandbox_folder("toy")
    assert installed_folder("toy", ("a==1", "b==3")) is None
    with installing("toy", ("a==1", "b==3")) as folder:
        (folder / "file").write_text("2")
    assert (own_cache / "toy" / "file").read_text() == "2"
    assert [path.name for path in own_cache.iterdir()] == ["toy"]


def test_a_broken_installation_leaves_nothing_and_keeps_the_old_one(own_cache: Path) -> None:
    with installing("toy", "old") as folder:
        (folder / "file").write_text("old")
    for error in (RuntimeError(), KeyboardInterrupt(), ProviderError("no")):
        with pytest.raises(type(error)), installing("toy", "new"):
            raise error
    code = "import sys; sys.stderr.write('note\\nE: no such package\\n'); sys.exit(1)"
    with pytest.raises(ProviderError, match="E: no such package"), installing("toy", "new"):
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert [path.name for path in own_cache.iterdir()] == ["toy"]
    assert installed_folder("toy", "old") is not None


@pytest.mark.slow
def test_a_package_that_cannot_be_fetched_is_one_clear_error(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip's own settings are respected, so that nothing is fetched
    with pytest.raises(ProviderError, match="No matching distribution found"), installing("toy", "x") as folder:
        make_environment(folder, TINY, Silent())
    assert not list(own_cache.iterdir())


@pytest.mark.slow
def test_another_licence_than_the_known_one_is_refused(own_cache: Path) -> None:
    known = msgspec.structs.replace(TINY, packages=(), licences={"pip": "Beerware"})
    with pytest.raises(ProviderError, match="edgeq knows it under 'Beerware'"), installing("toy", "x") as folder:
        make_environment(folder, known, Silent())
    assert not list(own_cache.iterdir())


def test_packages_are_pinned_and_have_licences() -> None:
    for name in ("qnn", "openvino", "tensorrt-rtx", "webgpu"):
        environment = find_environment(name)
        pins = [package.partition("==") for package in environment.packages]
        assert all(version for _, _, version in pins)
        assert {package for package, _, _ in pins} == set(environment.licences)
    assert TINY.unusable() is not None
    assert "this is" in str(TINY.unusable())


def test_all_sandboxes_say_what_they_are() -> None:
    for name in sandbox_names():
        sandbox = find_sandbox(name)
        assert sandbox.name == name
        assert sandbox.summary
        assert sandbox.licence
        assert sandbox.gives in ("numbers", "build")
    with pytest.raises(ConfigError, match="no sandbox 'abacus'"):
        find_sandbox("abacus")


def test_profiles_name_sandboxes_that_exist() -> None:
    named = {load_target(name).verification.sandbox for name in target_names()}
    assert {name for name in named if name is not None} <= set(sandbox_names())
    assert {"openvino", "tensorrt-rtx"} <= named


def test_what_is_not_installed_says_how_to_install_it(own_cache: Path) -> None:
    sandbox = find_sandbox("openvino")
    if sandbox.unusable():
        pytest.skip(str(sandbox.unusable()))
    assert sandbox.missing() == "it is not installed"
    with pytest.raises(ProviderError, match="edgeq doctor --install-provider openvino"):
        sandbox.run([])


def test_openvino_runs_floats_and_integers(tmp_path: Path) -> None:
    installed("openvino")
    provider = load_target("intel-openvino").provider
    first, second, expected = run("openvino", provider, tmp_path)
    assert first.status == second.status == "ran", (first.reason, second.reason)
    assert set((second.assigned or {}).values()) == {"OpenVINOExecutionProvider"}
    scale = np.abs(expected[0]).max() / 255
    for output, reference in zip(second.outputs, expected, strict=True):
        assert np.abs(output["y"] - reference).max() < 2.1 * scale
    away = msgspec.structs.replace(provider, options={"device_type": "NPU"})
    assert {outcome.status for outcome in run("openvino", away, tmp_path)[:2]} == {"refused"}


def test_tensorrt_builds_what_is_symmetric_and_refuses_the_rest(tmp_path: Path) -> None:
    installed("tensorrt-rtx")
    profile = load_target("nvidia-tensorrt")
    first, second, _ = run("tensorrt-rtx", profile.provider, tmp_path)
    assert first.status == "built", first.reason
    assert second.status == "refused"
    assert "Non-zero zero point is not supported" in str(second.reason)
    model = parse(
        "g (float[1,8,6,6] x) => (float[1,8,6,6] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) \n r = Relu(c) \n "
        "y = Conv<pads=[1,1,1,1]>(r, w, b) }",
        w=weights(8, 8, 3, 3),
        b=weights(8),
    )
    save_model(quantized(model, profile).model, tmp_path / "symmetric.onnx")
    (built,) = find_sandbox("tensorrt-rtx").run([Task(tmp_path / "symmetric.onnx", profile.provider)])
    assert built.status == "built", built.reason
    assert built.version.startswith("tensorrt-rtx ")


@pytest.mark.slow
def test_webgpu_runs_floats_and_leaves_quantization_to_the_cpu(tmp_path: Path) -> None:
    installed("webgpu")
    provider = Provider(name="WebGpuExecutionProvider", package="onnxruntime-webgpu", version="")
    first, second, expected = run("webgpu", provider, tmp_path)
    assert first.status == second.status == "ran", (first.reason, second.reason)
    assert (first.assigned or {})["y"] == "WebGpuExecutionProvider"
    assert (second.assigned or {})["x_QuantizeLinear"] == "CPUExecutionProvider"
    assert np.abs(second.outputs[0]["y"] - expected[0]).max() < np.abs(expected[0]).max() / 50
