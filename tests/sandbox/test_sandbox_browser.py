"""onnxruntime-web in the machine's own browser: its numbers, its words, and a server that gives away nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import parse, quantized, weights

from edgeq.errors import ConfigError, ProviderError
from edgeq.progress import Silent
from edgeq.runtime import run_model
from edgeq.sandbox import Task, find_sandbox
from edgeq.sandbox.process import python_command
from edgeq.sandbox.workers import browser_worker
from edgeq.target import Provider, load_target

WEB = load_target("web").provider
BOTH = pytest.mark.parametrize("name", ["browser-wasm", "browser-webgpu"])
NET = (
    "g (float[1,3,16,16] x) => (float[1,10] y) { a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu(a)"
    "  c = Conv <pads = [1,1,1,1]> (b, w2) d = Add(b, c) e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, w3) }"
)


def net() -> ir.Model:
    return parse(NET, w1=weights(16, 3, 3, 3), w2=weights(16, 16, 3, 3, seed=1), w3=weights(16, 10, seed=2))


def installed(name: str) -> None:
    if why := find_sandbox(name).missing():
        pytest.skip(f"{why}: edgeq doctor --install-provider {name}")


@pytest.mark.slow
def test_webassembly_gives_the_integers_of_this_machine(tmp_path: Path) -> None:
    installed("browser-wasm")
    chain = quantized(net(), "web")
    ir.save(chain.model, tmp_path / "model.onnx")
    task = Task(tmp_path / "model.onnx", WEB, tuple(chain.feed))
    (outcome,) = find_sandbox("browser-wasm").run([task], timeout_s=60)
    assert outcome.status == "ran", outcome.reason
    assert outcome.version.startswith("onnxruntime-web 1.")
    assert len(outcome.outputs) == len(chain.feed)
    for got, sample in zip(outcome.outputs, chain.feed, strict=True):
        np.testing.assert_array_equal(got["y"], chain.run(sample, "all")["y"])
    assert outcome.assigned is not None
    assert set(outcome.assigned.values()) == {"CPUExecutionProvider"}


@pytest.mark.slow
def test_webgpu_computes_and_tells_what_it_leaves_to_the_cpu(tmp_path: Path) -> None:
    installed("browser-webgpu")
    chain = quantized(net(), "web")
    ir.save(net(), tmp_path / "float.onnx")
    ir.save(chain.model, tmp_path / "integer.onnx")
    provider = Provider(name="WebGpuExecutionProvider", package="onnxruntime-web", version=WEB.version)
    feeds = (chain.feed[0],)
    tasks = [Task(tmp_path / "float.onnx", provider, feeds), Task(tmp_path / "integer.onnx", provider, feeds)]
    floats, integers = find_sandbox("browser-webgpu").run(tasks, timeout_s=120)
    assert floats.status == integers.status == "ran", (floats.reason, integers.reason)
    exact = chain.run(chain.feed[0])["y"]
    np.testing.assert_allclose(integers.outputs[0]["y"], exact, atol=np.abs(exact).max() / 64)
    assert floats.assigned is not None
    assert integers.assigned is not None
    assert {floats.assigned[node] for node in ("a", "c", "d", "y")} == {"WebGpuExecutionProvider"}
    assert set(integers.assigned.values()) == {"WebGpuExecutionProvider", "CPUExecutionProvider"}


@pytest.mark.slow
def test_arrays_of_every_type_come_back_as_they_went(tmp_path: Path) -> None:
    installed("browser-wasm")
    names = ["float32", "float16", "float64", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"]
    inputs, outputs = [], []
    for name in names:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))
        inputs.append(onnx.helper.make_tensor_value_info(f"x {name}", kind, ["n", 3]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y {name}", kind, ["n", 3]))
    nodes = [onnx.helper.make_node("Identity", [f"x {name}"], [f"y {name}"]) for name in names]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(proto, tmp_path / "types.onnx")
    values = np.random.default_rng(0).integers(0, 2**7, (2, 3))
    feed = {f"x {name}": (values % 2 if name == "bool" else values - (name[0] == "i")).astype(name) for name in names}
    empty = {name: array[:0] for name, array in feed.items()}
    (outcome,) = find_sandbox("browser-wasm").run([Task(tmp_path / "types.onnx", WEB, (feed, empty))], timeout_s=60)
    assert outcome.status == "ran", outcome.reason
    for given, got in zip((feed, empty), outcome.outputs, strict=True):
        for name in names:
            assert got[f"y {name}"].dtype == given[f"x {name}"].dtype
            np.testing.assert_array_equal(got[f"y {name}"], given[f"x {name}"])


@pytest.mark.slow
def test_tasks_that_fail_cost_only_themselves(tmp_path: Path) -> None:
    """One is refused, one never ends, one has its weights in a file beside it; they are run in one go."""
    installed("browser-wasm")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    forever = "g (int64 n, float[3] x) => (float[3] y) { y = Loop(n, true, x) <body = b (int64 i, bool c, float[3] s)"
    forever += " => (bool d, float[3] t) { d = Identity(c) t = Neg(s) }> }"
    ir.save(parse(forever, true=np.array(True)), tmp_path / "forever.onnx")
    ir.save(net(), tmp_path / "data.onnx", external_data="data.bin", size_threshold_bytes=0)
    assert (tmp_path / "data.bin").stat().st_size > 1000
    feed = {"x": weights(1, 3, 16, 16)}
    endless = {"n": np.array(2**60), "x": np.ones(3, np.float32)}
    tasks = [
        Task(tmp_path / "data.onnx", WEB, ({"x": np.ones((2, 2), np.float32)},)),
        Task(tmp_path / "broken.onnx", WEB),
        Task(tmp_path / "forever.onnx", WEB, (endless,)),
        Task(tmp_path / "data.onnx", WEB, (feed,)),
    ]
    wrong, broken, stuck, ran = find_sandbox("browser-wasm").run(tasks, timeout_s=20)
    assert (wrong.status, broken.status, stuck.status, ran.status) == ("refused", "refused", "crashed", "ran"), (
        ran.reason
    )
    assert "Invalid rank" in str(wrong.reason)
    assert "no answer within 20 s" in str(stuck.reason)
    np.testing.assert_allclose(ran.outputs[0]["y"], run_model(net(), feed)["y"], atol=1e-5)


@BOTH
def test_what_is_missing_and_what_to_do_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for browser, remedy in ((None, "apt install chromium"), ("/usr/bin/chromium", f"--install-provider {name}")):
        monkeypatch.setattr("edgeq.sandbox.browser._find_browser", lambda browser=browser: browser)
        with pytest.raises(ProviderError) as caught:
            find_sandbox(name).run([])
        assert remedy in (caught.value.remedy or "")
    with pytest.raises(ProviderError, match="npm"):
        find_sandbox(name).install(Silent())


def test_an_argument_that_means_nothing_is_refused() -> None:
    installed("browser-wasm")
    with pytest.raises(ConfigError, match="threads"):
        find_sandbox("browser-wasm").run([], arguments={"cpu": "max"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[browser_worker._Server]:
    (tmp_path / "ort").mkdir()
    (tmp_path / "ort/package.json").write_text("{}")
    (tmp_path / "ort/ort.wasm.min.mjs").write_text("ort")
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "private").write_text("private")
    server = browser_worker._Server(browser_worker._Desk(tmp_path / "ort"))
    server.desk.files = {"model": tmp_path / "model.onnx", "in0-0": b"input"}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server: browser_worker._Server, path: str) -> bytes | int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            return answer.read()
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_gives_the_tasks_files_to_its_own_page_only(server: browser_worker._Server) -> None:
    base = f"/{server.desk.secret}"
    assert get(server, f"{base}/files/model") == b"model"
    assert get(server, f"{base}/files/in0-0") == b"input"
    assert get(server, f"{base}/ort/ort.wasm.min.mjs?x=1") == b"ort"
    assert b"browser_page.mjs" in get(server, f"{base}/browser_page.html")  # type: ignore[operator]
    for path in ("/files/model", "/x/files/model", f"{base}x/files/model", "/", "//files/model", f"/%00{base}/task"):
        assert get(server, path) == 404
    for name in ("private", "../private", "files/../private", "files/private", "ort/package.json", "ort/../private"):
        assert get(server, f"{base}/{name}") == 404
    assert server.server_address[0] == "127.0.0.1"
    assert not server.desk.awake.is_set()


def test_answers_come_from_its_own_page_only(server: browser_worker._Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        post(server, "/guessed/answer", b"forged")
    post(server, f"/{server.desk.secret}/answer", b"own")
    assert server.desk.answers.get(timeout=10) == b"own"
    assert server.desk.answers.empty()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for the browser")
def test_the_address_is_on_no_command_line_and_nothing_is_left_behind_when_nobody_waits_any_more(
    tmp_path: Path,
) -> None:
    (tmp_path / "ort").mkdir()
    browser = tmp_path / "browser"  # one that starts and never asks for the page
    browser.write_text(
        f'#!/bin/sh\ncd "{tmp_path}"\necho "$$ $*" > started.new && mv started.new started\nexec sleep 60\n'
    )
    browser.chmod(0o755)
    command = [*python_command(script="browser_worker.py"), str(tmp_path / "ort"), "wasm", str(tmp_path), str(browser)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as worker:
        try:
            assert worker.stdin is not None
            while not (tmp_path / "started").exists():
                time.sleep(0.02)
            process, *arguments = (tmp_path / "started").read_text().split()
            assert arguments[-1].startswith("file:"), "other users may read it"
            worker.stdin.close()
            worker.wait(timeout=20)
            with pytest.raises(ProcessLookupError):
                os.kill(int(process), 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)


def post(server: browser_worker._Server, path: str, body: bytes) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", data=body, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 204


def test_data_outside_the_models_folder_is_not_served(tmp_path: Path) -> None:
    ir.save(net(), tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert browser_worker._external(proto.graph, tmp_path) == ["model.data"]
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../secret" if entry.key == "location" else entry.value
    with pytest.raises(ValueError, match="not in its folder"):
        browser_worker._external(proto.graph, tmp_path)
