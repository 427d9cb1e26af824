"""The time per node on the page: every kernel is there, boxes fit, names from a model are text and nothing else."""

from __future__ import annotations

import itertools
import re

import msgspec
import pytest
from page_tags import Tags

from edgeq.node_times import NodeTime
from edgeq.stages.package import render_html
from edgeq.stages.package.page_nodes import nodes_page

CPU = "CPUExecutionProvider"


def timed(*times: tuple[str, str, float], provider: str = CPU) -> tuple[NodeTime, ...]:
    total = sum(us for _, _, us in times)
    return tuple(
        NodeTime(node=name, op_type=op, provider=provider, mean_us=us, share=us / total) for name, op, us in times
    )


QUANTIZED = timed(("x_q", "QuantizeLinear", 100.0), ("conv", "QLinearConv", 700.0), ("fc", "QGemm", 200.0))
FLOAT = timed(("conv", "Conv", 1800.0), ("fc", "Gemm", 200.0))


@pytest.fixture
def page(report, draft) -> Tags:
    return Tags(render_html(msgspec.structs.replace(report, node_times=QUANTIZED, float_node_times=FLOAT), draft))


def test_the_page_tells_where_the_time_goes(page: Tags) -> None:
    for text in (
        "Quantized: 1.000 ms in 3 kernels on CPU, overhead 10.0 % (quantize and dequantize 10.0 %).",
        "Float: 2.000 ms in 2 kernels on CPU, overhead 0.0 % (none).",
        "QLinearConv CPU 0.700 70.0 % 1",
        "Conv CPU 1.800 90.0 % 1",
        "conv QLinearConv CPU 0.700 70.00 % 1.800 0.39",
    ):
        assert text in page.words, text
    assert page.tags.count("svg") == 4


def test_without_times_there_is_no_such_part(report, draft) -> None:
    assert "Where the time goes" not in Tags(render_html(report, draft)).words
    assert nodes_page(()) is None


def test_both_models_are_drawn_on_one_scale() -> None:
    ours, theirs = nodes_page(QUANTIZED, FLOAT)["sides"]
    assert [sum(box["width"] for box in side["boxes"]) for side in (ours, theirs)] == pytest.approx([500, 1000])
    assert [box["work"] for box in ours["boxes"]] == ["quantize", "integer", "integer"]


def test_hundreds_of_nodes_stay_readable_and_none_is_lost() -> None:
    times = [
        (f"node_{i}", "QLinearConv" if i % 2 else "DequantizeLinear", 1.0 + (i % 7 == 0) * 300) for i in range(900)
    ]
    page = nodes_page(timed(*times))
    assert len(page["rows"]) == 900
    for row in range(3):
        boxes = [box for box in page["icicle"] if box["row"] == row]
        assert sum(box["width"] for box in boxes) == pytest.approx(1000, abs=5)
        assert all(b["x"] >= a["x"] + a["width"] - 0.5 for a, b in itertools.pairwise(boxes)), "boxes overlap"
    assert len(page["icicle"]) < 300
    assert any(box["text"].startswith("386 kernels") for box in page["icicle"])
    assert all(len(box["label"]) * 6.7 <= box["width"] for box in page["icicle"])


def test_names_from_a_model_are_text(report, draft) -> None:
    evil = '</title><script>alert(1)</script>"onload="x'
    nodes = timed((evil, evil, 5.0), ("b", "Conv", 3.0), provider=evil)
    html = render_html(msgspec.structs.replace(report, node_times=nodes), draft)
    assert "<script>alert" not in html
    assert re.search(r'"onload', html) is None
    assert evil in " ".join(Tags(html).text)


def test_a_provider_of_its_own_is_named(report, draft) -> None:
    nodes = (*timed(("part", "QNN_part", 9.0), provider="QNNExecutionProvider"), *timed(("fc", "Gemm", 1.0)))
    words = Tags(render_html(msgspec.structs.replace(report, node_times=nodes), draft)).words
    assert "2 kernels on QNN, CPU" in words
    assert "part QNN_part QNN 0.009" in words
