"""The pages of device reports and comparisons: whole, closed off, exact, and safe against names from elsewhere."""

from __future__ import annotations

import re

import msgspec
import pytest
from page_tags import Tags

from edgeq.compare_report import ComparedDevice, ComparedModel, CompareReport
from edgeq.comparison import Session, compare_sessions
from edgeq.device_report import (
    DeviceCheck,
    DeviceInfo,
    DeviceLatency,
    DeviceReport,
    DeviceResult,
    DeviceState,
    SessionTimes,
)
from edgeq.node_times import NodeTime
from edgeq.report import Finding, Metric
from edgeq.stages.package import render_compare_html, render_devices_html
from edgeq.stages.package.page_spread import scale_ticks, spread_plot

EVIL = '</title><script>alert(1)</script>"><img src=x onerror="alert(2)'
NODES = (
    NodeTime(node="conv", op_type="QLinearConv", provider="CPUExecutionProvider", mean_us=900.0, share=0.9),
    NodeTime(node="x_q", op_type="QuantizeLinear", provider="CPUExecutionProvider", mean_us=100.0, share=0.1),
)


def latency(ms: float, *, emulated: bool = False, sessions: int = 2) -> DeviceLatency:
    quantiles = tuple(ms * (0.9 + 0.01 * step) for step in range(21))
    return DeviceLatency(
        runs=40 * sessions,
        warmup_runs=3,
        min_ms=0.9 * ms,
        p50_ms=ms,
        p90_ms=1.08 * ms,
        p99_ms=1.1 * ms,
        max_ms=1.1 * ms,
        mean_ms=ms,
        per_second=1e3 / ms,
        load_ms=50.0,
        emulated=emulated,
        sessions=(SessionTimes(runs=40, wall_ms=quantiles),) * sessions,
    )


def device(spelling: str, ms: float, **more: object) -> DeviceResult:
    info = DeviceInfo(spelling=spelling, kind="local", model="Board 3", abi="linux-aarch64", cores=4)
    result = DeviceResult(
        device=info,
        target="linux-arm64",
        precision="w8a8",
        provider="CPUExecutionProvider",
        runtime="onnxruntime 1.32.0",
        latency=latency(ms),
        peak_mb=47.0,
        before=DeviceState(temperature_c=41.0),
        after=DeviceState(temperature_c=55.0),
        metrics=(Metric(name="SQNR", value=22.5, unit="dB", samples=4, source="the bundle's 4 samples"),),
        nodes=NODES,
        checks=(DeviceCheck(name="--max-latency-ms", state="passed", text="p50 is 5 ms"),),
    )
    return msgspec.structs.replace(result, **more)


def devices(*results: DeviceResult) -> DeviceReport:
    return DeviceReport(edgeq="0.1.0", name="tiny", target="linux-arm64", precision="w8a8", results=results)


@pytest.fixture
def several() -> DeviceReport:
    failed = device("adb:2", 1.0, latency=None, nodes=(), error="no space left", remedy="make room", exit_code=5)
    emulated = device("qemu:max", 900.0, latency=latency(900.0, emulated=True))
    emulated = msgspec.structs.replace(emulated, device=msgspec.structs.replace(emulated.device, emulated=True))
    return devices(device("ssh:board", 12.5), device("browser:wasm", 100.0), emulated, failed)


@pytest.fixture
def comparison() -> CompareReport:
    sessions = [
        Session([10.0, 10.0], [10.0 * r, 10.0 * r], bool(i % 2)) for i, r in enumerate((1.04, 1.05, 1.06, 1.05))
    ]
    cpu, wall = compare_sessions(sessions, measure="cpu"), compare_sessions(sessions[:1], measure="wall")
    figure = Metric(name="SQNR", value=200.0, unit="dB", samples=4, source="the bundle's 4 samples")
    model = ComparedModel(
        name="tiny", target="android", precision="w8a8", provider="CPUExecutionProvider", model_bytes=5000
    )
    result = ComparedDevice(
        device=DeviceInfo(spelling="local", kind="local"),
        runtime="onnxruntime 1.32.0",
        a=latency(10.0),
        b=latency(10.5),
        differences=(wall, cpu),
        decided_by="cpu",
        why="it is undisturbed",
        agreement=(figure,),
        nodes_a=NODES,
        nodes_b=NODES,
    )
    return CompareReport(edgeq="0.1.0", a=model, b=msgspec.structs.replace(model, model_bytes=5100), results=(result,))


def test_one_table_holds_all_devices(several: DeviceReport) -> None:
    page = Tags(render_devices_html(several))
    for text in (
        "Fails on 1 of 4 devices",
        "ssh:board Board 3, linux-aarch64, 4 cores CPU onnxruntime 1.32.0, 1 thread",
        "1 thread 12.5 13.5 13.8 n/a 50.0 n/a 80.0 47.0 MB",
        "41 to 55 °C n/a 22.50 dB",
        "Board 3, linux-aarch64, 4 cores, emulated CPU onnxruntime 1.32.0, 1 thread n/a n/a n/a",
        "adb:2 : no space left",
        "What to do: make room",
        "--max-latency-ms passed: p50 is 5 ms",
        "Package: 1.000 ms in 2 kernels on CPU, overhead 10.0 %",
        "QLinearConv CPU 0.900 90.0 % 1",
    ):
        assert text.replace(" :", ":") in page.words.replace(" :", ":"), text
    spread = next(i for i, text in enumerate(page.text) if "logarithmic" in text)
    assert "qemu:max" not in page.text[spread : spread + 12], "emulated times are not drawn"


def test_the_verdict_says_what_is_open() -> None:
    assert "Gives its outputs on the device" in Tags(render_devices_html(devices(device("local", 5.0)))).words
    check = DeviceCheck(name="--max-regression", state="undecided", text="too noisy")
    page = Tags(render_devices_html(devices(device("local", 5.0, checks=(check,)), device("ssh:b", 5.0))))
    assert "Runs on all 2 devices, but not everything that was asked can be told" in page.words


def test_a_comparison_shows_verdict_intervals_and_figures(comparison: CompareReport) -> None:
    html = render_compare_html(comparison)
    page = Tags(html)
    for text in (
        "B is slower than A: its time is 1.050 times (95 % interval 1.0",
        "Judged by CPU time: it is undisturbed.",
        "size of the model 0.01 MB 0.01 MB",
        "p50 on local 10.0 ms 10.5 ms",
        "SQNR of B with A on local identical",
        "B: 1.000 ms in 2 kernels",
    ):
        assert text in page.words, text
    assert html.count('class="interval') == 1, "a measure without an interval is not drawn"


def test_pages_of_failures_are_whole(comparison: CompareReport) -> None:
    bare = ComparedDevice(
        device=DeviceInfo(spelling="adb:1", kind="adb"), error="no device", remedy="plug it in", exit_code=5
    )
    page = Tags(render_compare_html(msgspec.structs.replace(comparison, results=(bare,))))
    assert "Failed no device" in page.words
    assert "What to do: plug it in" in page.words


@pytest.mark.parametrize("kind", ["devices", "comparison"])
def test_names_from_elsewhere_are_text(kind: str, several: DeviceReport, comparison: CompareReport) -> None:
    nodes = (NodeTime(node=EVIL, op_type=EVIL, provider=EVIL, mean_us=1.0, share=1.0),)
    info = DeviceInfo(spelling=EVIL, kind="adb", model=EVIL, soc=EVIL)
    if kind == "devices":
        finding = Finding(severity="warning", text=EVIL, remedy=EVIL)
        result = device(
            EVIL, 5.0, device=info, nodes=nodes, findings=(finding,), notes=(EVIL,), error=EVIL, remedy=EVIL
        )
        html = render_devices_html(msgspec.structs.replace(devices(result), name=EVIL))
    else:
        result = msgspec.structs.replace(
            comparison.results[0], device=info, nodes_a=nodes, nodes_b=nodes, notes=(EVIL,)
        )
        model = msgspec.structs.replace(comparison.a, name=EVIL, target=EVIL)
        html = render_compare_html(msgspec.structs.replace(comparison, a=model, results=(result,)))
    page = Tags(html)
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert EVIL in " ".join(page.text)


def test_nothing_is_loaded_from_anywhere(several: DeviceReport, comparison: CompareReport) -> None:
    for html in (render_devices_html(several), render_compare_html(comparison)):
        page = Tags(html)
        assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
        assert not [value for name, value in page.attributes if name in ("src", "href", "action", "srcset")]
        assert not re.search(r"https?://|@import|url\(", html)
        assert "default-src 'none'" in html


def test_the_spread_is_drawn_where_it_belongs() -> None:
    plot = spread_plot([("a", latency(10.0), ""), ("b", latency(20.0, sessions=1), "other")])
    first, second = plot["rows"]
    assert not plot["logarithmic"]
    assert first["x5"] < first["x25"] < first["x50"] < first["x25"] + first["width"] < first["x95"] < second["x5"]
    assert (len(first["dots"]), second["dots"]) == (2, [])
    assert [tick["text"] for tick in plot["ticks"]] == ["10.0", "15.0", "20.0"]
    assert spread_plot([("a", latency(1.0), ""), ("b", latency(100.0), "")])["logarithmic"]
    assert spread_plot([("a", latency(10.0, emulated=True), "")]) is None


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "ticks"),
    [
        (0.96, 1.07, False, [0.96, 0.98, 1.0, 1.02, 1.04, 1.06]),
        (3.0, 400.0, True, [5.0, 10.0, 20.0, 50.0, 100.0, 200.0]),
        (5.0, 5.0, False, [5.0]),
    ],
    ids=["around one", "decades", "a point"],
)
def test_ticks_are_round(low: float, high: float, logarithmic: bool, ticks: list[float]) -> None:
    found = scale_ticks(low, high, logarithmic=logarithmic)
    assert found == pytest.approx(ticks) or (logarithmic and set(found) <= {*ticks, 1.0, 2.0, 100.0})
