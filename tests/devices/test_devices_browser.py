"""The browser as a device: real pages where there is a Chromium, and what is said where something is wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeq.bundle import Bundle
from edgeq.devices import Entry, Job
from edgeq.devices import browser as module
from edgeq.devices.browser import BrowserDevice, find_browsers
from edgeq.devices.registry import parse_device
from edgeq.devices.web_profile import read_web_profile
from edgeq.errors import ConfigError, MissingProviderError, ModelError, ProviderError
from edgeq.graph import load_model
from edgeq.runtime import run_model
from edgeq.sandbox.browser import missing_parts
from edgeq.sandbox.process import DeadWorkerError
from edgeq.target import load_target

QUICK = {"min_runs": 6, "seconds": 0.05, "warmup_runs": 2, "warmup_s": 0.0, "timeout_s": 120.0}


def job_of(bundle: Bundle, feeds: tuple[Mapping[str, np.ndarray], ...], entries: int = 1, **settings: Any) -> Job:
    named = tuple(Entry(f"model {number}", bundle, bundle.manifest.main) for number in range(entries))
    return Job(named, feeds, **{**QUICK, **settings})


def installed() -> None:
    if why := missing_parts():
        pytest.skip(f"{why}: edgeq doctor --install-provider browser-wasm")


@pytest.mark.slow
def test_webassembly_is_timed_and_gives_the_integers_of_this_machine(bundle: Bundle, feeds: Any) -> None:
    installed()
    outcome = BrowserDevice("wasm").run(job_of(bundle, feeds, profile=True))
    (run,) = outcome.runs
    assert len(run.wall_ms) >= 6
    assert run.warmup_runs >= 2
    assert run.load_ms is not None
    assert run.first_ms is not None
    assert min(run.load_ms, run.first_ms, *run.wall_ms) > 0
    assert run.baseline_mb is not None
    assert run.peak_mb is not None
    assert run.peak_mb >= run.baseline_mb > 1
    assert {"QLinearConv", "QGemm"} <= {node.op_type for node in run.nodes}
    assert sum(node.share for node in run.nodes) == pytest.approx(1, abs=1e-3)
    assert set((run.assigned or {}).values()) == {"CPUExecutionProvider"}
    model = load_model(bundle.model)
    for feed, outputs in zip(feeds, run.outputs, strict=True):
        np.testing.assert_allclose(outputs["logits"], run_model(model, feed)["logits"], rtol=1e-5)
    assert outcome.info.model is not None
    assert outcome.info.model.startswith(("Chromium ", "Google Chrome "))
    assert outcome.runtime.startswith("onnxruntime-web 1.")
    assert outcome.threads == 1
    assert any("to start, once per page" in note for note in outcome.notes)


@pytest.mark.slow
def test_models_take_turns_with_all_threads(bundle: Bundle, feeds: Any) -> None:
    installed()
    outcome = BrowserDevice("wasm").run(job_of(bundle, feeds[:1], 2, threads=0, cores="big"))
    one, other = outcome.runs
    assert (one.name, other.name) == ("model 0", "model 1")
    assert len(one.wall_ms) == len(other.wall_ms) >= 6
    assert one.peak_mb is None
    assert other.peak_mb is None
    np.testing.assert_array_equal(one.outputs[0]["logits"], other.outputs[0]["logits"])
    assert outcome.threads == outcome.info.cores
    assert any("cannot be pinned" in note for note in outcome.notes)
    assert any(note.startswith("memory: n/a") for note in outcome.notes) == (outcome.threads > 1)


@pytest.mark.slow
def test_a_gpu_that_is_emulated_gives_numbers_and_no_times(bundle: Bundle, feeds: Any) -> None:
    installed()
    outcome = BrowserDevice("webgpu").run(job_of(bundle, feeds[:1], profile=True))
    if not outcome.info.emulated:
        pytest.skip("this machine has a GPU")
    (run,) = outcome.runs
    assert run.wall_ms == run.nodes == ()
    assert run.load_ms is run.first_ms is run.peak_mb is None
    assert "WebGpuExecutionProvider" in (run.assigned or {}).values()
    exact = run_model(load_model(bundle.model), feeds[0])["logits"]
    np.testing.assert_allclose(run.outputs[0]["logits"], exact, atol=np.abs(exact).max() / 20)
    assert any(note.startswith("times and memory: n/a") for note in outcome.notes)


@pytest.mark.slow
def test_what_the_page_refuses_is_said_in_its_own_words(bundle: Bundle, feeds: Any) -> None:
    installed()
    wrong = ({"image": np.ones((2, 2), np.float32)},)
    with pytest.raises(ModelError, match="Invalid rank") as caught:
        BrowserDevice("wasm").run(job_of(bundle, wrong))
    assert caught.value.where == str(bundle.model)


class Page:
    """A worker that answers as it is told; ``asked`` are the jobs it got."""

    def __init__(self, adapter: Mapping[str, Any] | None, answer: Mapping[str, Any] | Exception) -> None:
        self.about = {"version": "web 1, Chromium 9", "isolated": True, "cores": 4, "adapter": adapter}
        self.answer = answer
        self.asked: list[Mapping[str, Any]] = []

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        if request.get("about"):
            return self.about
        self.asked.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        for entry in request["entries"]:
            for feed in entry["feeds"]:
                np.savez(feed["output"], a0=np.zeros(1, np.float32))
        return dict(self.answer)

    @contextlib.contextmanager
    def open(self, backend: str) -> Iterator[Page]:
        yield self


RAN = {"status": "ran", "version": "web 1", "runs": [{"names": ["y"], "load_ms": 5.0, "first_ms": 2.0}]}
GPU = {"name": "acme fast", "software": False, "float16": True}


def test_a_real_gpu_is_timed_and_an_emulated_one_is_not(
    bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, emulated = Page(GPU, RAN), Page({**GPU, "name": "google swiftshader", "software": True}, RAN)
    monkeypatch.setattr(module, "open_browser", real.open)
    outcome = BrowserDevice("webgpu").run(job_of(bundle, feeds, threads=0))
    assert (outcome.info.soc, outcome.info.emulated, outcome.threads) == ("acme fast", False, 4)
    assert real.asked[0]["measure"]["min_runs"] == 6
    assert outcome.runs[0].load_ms == 5.0
    monkeypatch.setattr(module, "open_browser", emulated.open)
    outcome = BrowserDevice("webgpu").run(job_of(bundle, feeds, profile=True))
    assert outcome.info.emulated
    assert emulated.asked[0]["measure"] is emulated.asked[0]["profile"] is None
    assert outcome.runs[0].load_ms is None
    assert len(outcome.runs[0].outputs) == len(feeds)


def test_the_settings_of_another_provider_are_left_out(
    bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasm, gpu = Page(None, RAN), Page(GPU, RAN)
    assert bundle.manifest.provider.session
    for page, device in ((wasm, BrowserDevice("wasm")), (gpu, BrowserDevice("webgpu"))):
        monkeypatch.setattr(module, "open_browser", page.open)
        device.run(job_of(bundle, feeds))
    assert wasm.asked[0]["entries"][0]["provider"]["session"] == bundle.manifest.provider.session
    assert gpu.asked[0]["entries"][0]["provider"]["session"] == {}


def test_a_graph_for_another_provider_is_refused_so_that_the_fallback_runs(
    bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_browser", Page(GPU, RAN).open)
    own = load_target("android-npu").provider
    made = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, provider=own))
    for backend, target in (("wasm", "web"), ("webgpu", "web-gpu")):
        with pytest.raises(MissingProviderError, match=f"browser:{backend} has no QNNExecutionProvider") as caught:
            BrowserDevice.parse(backend).run(job_of(made, feeds))
        assert str(caught.value.remedy).endswith(f"package the model for {target}")


def test_floats_are_widened_only_for_a_gpu_without_16_bits(
    bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir as ir
    from small_models import parse

    halves = "g (float16[1,3] x) => (float16[1,3] y) { y = Relu(x) }"
    ir.save(parse(halves), bundle.model)
    for float16 in (True, False):
        page = Page({**GPU, "float16": float16}, RAN)
        monkeypatch.setattr(module, "open_browser", page.open)
        outcome = BrowserDevice("webgpu").run(job_of(bundle, feeds))
        same = page.asked[0]["entries"][0]["model"] == str(bundle.model.resolve())
        assert same == float16
        assert any("widened to 32 bits" in note for note in outcome.notes) != float16


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        ({"status": "refused", "reason": "no kernel for Foo", "entry": 1}, ModelError, "no kernel for Foo"),
        (DeadWorkerError("the browser ended with exit code 1"), ProviderError, "the browser ended with exit code 1"),
    ],
    ids=["refused", "died"],
)
def test_failures_say_what_and_where(
    answer: Any, kind: type[Exception], words: str, bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_browser", Page(None, answer).open)
    with pytest.raises(kind, match=words):
        BrowserDevice("wasm").run(job_of(bundle, feeds, 2))


def test_a_browser_without_webgpu_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_browser", Page(None, RAN).open)
    assert BrowserDevice("wasm").describe().cores == 4
    with pytest.raises(ProviderError, match="Chromium 9 offers no WebGPU"):
        BrowserDevice("webgpu").describe()


def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("edgeq.sandbox.browser._find_browser", lambda: found)
    found = None
    expected = "install one with the system's package manager, such as `apt install chromium`"
    for backend in ("wasm", "webgpu"):
        for call in (find_browsers, BrowserDevice(backend).describe):
            with pytest.raises(ProviderError) as caught:
                call()
            assert caught.value.remedy == expected
        assert expected in str(BrowserDevice(backend).missing())
    found = "/usr/bin/chromium"
    for call in (find_browsers, BrowserDevice("wasm").describe):
        with pytest.raises(ProviderError) as caught:
            call()
        assert caught.value.remedy == "edgeq doctor --install-provider browser-wasm"
    assert "--install-provider browser-webgpu" in str(BrowserDevice("webgpu").missing())


def test_how_a_browser_is_spelled() -> None:
    spelled = {text: parse_device(text).spelling for text in ("browser", "browser:wasm", "browser:webgpu")}
    assert spelled == {"browser": "browser:wasm", "browser:wasm": "browser:wasm", "browser:webgpu": "browser:webgpu"}
    with pytest.raises(ConfigError, match="'webnn'"):
        parse_device("browser:webnn")


def event(name: str, ts: int, dur: int, cat: str, **args: str) -> str:
    told = ",".join(f'"{key}" : "{value}"' for key, value in args.items())
    return (
        f'{{"cat" : "{cat}","pid" :1,"tid" :1,"dur" :{dur},"ts" :{ts},"ph" : "X","name" :"{name}","args" : {{{told}}}}}'
    )


def test_a_profile_counts_what_the_gpu_took_and_not_how_long_it_was_asked() -> None:
    """Three runs, of which two are warm-up: a node of two programs on the GPU, and one on the processor."""
    lines = []
    for number, factor in enumerate((50, 10, 1)):
        start = 1000 * number
        lines += [
            event("model_run", start, 900, "Session"),
            event("a&b_kernel_time", start + 1, 7, "Node", op_name="Conv", provider="WebGpuExecutionProvider"),
            event("q_kernel_time", start + 10, 20, "Node", op_name="QuantizeLinear", provider="CPUExecutionProvider"),
        ]
        programs = ("a&b&Conv&Transpose", 10), ("a&b&Conv&Conv2dMM", 50)
        lines += [event(name, 9000 + start, took * factor, "Api", shapes="x") for name, took in programs]
    found = {node.node: node for node in read_web_profile("[\n" + ",\n".join(lines) + "\n]\n")}
    assert {name: node.mean_us for name, node in found.items()} == {"q": 20, "a&b": 60}
    assert (found["a&b"].op_type, found["a&b"].provider) == ("Conv", "WebGpuExecutionProvider")
    assert (found["q"].share, found["a&b"].share) == (0.25, 0.75)
    with pytest.raises(ModelError, match="cannot be read"):
        read_web_profile("no profile")


def test_outputs_only(bundle: Bundle, feeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(None, RAN)
    monkeypatch.setattr(module, "open_browser", page.open)
    outcome = BrowserDevice("wasm").run(replace(job_of(bundle, feeds), measure=False))
    assert page.asked[0]["measure"] is None
    assert outcome.notes == ()
