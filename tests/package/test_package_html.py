"""The report's page: complete, closed off from the network, and safe against what is in a model."""

from __future__ import annotations

import re

import msgspec
import pytest
from page_tags import Tags

from edgeq.front import Front, FrontPoint, Sensitivity
from edgeq.qtypes import Trial
from edgeq.report import Contract, Finding, GraphReport, Metric, NodePlacement, ProviderCheck, Size
from edgeq.stages.package import render_html
from edgeq.stages.package.page_numbers import number


def test_the_page_says_what_was_measured(report, draft):
    page = Tags(render_html(report, draft))
    for text in (
        "Misses its contract",
        "--max-drop 0.5 points measured 0.8 points",
        "The package is 3.80 times smaller than the float model, runs 2.20 times as fast",
        "and reaches 74.2 % top-1 accuracy where the float model has 75.0 %",
        "-0.80 points",
        "Some CPU",
        "one node is slow",
        "What to do: leave it float",
        "1 tensor quantized, 1 left float",
        "no integer kernel",
        "largest error 1e-06",
        "(identical)",
        "not on a phone",
        "Apache-2.0",
        "ten pictures: 10 samples, CC0-1.0",
    ):
        assert text in page.words, text
    assert page.tags.count("section") == 10
    assert page.tags.count("svg") == 1


def test_every_node_is_there_and_counted_with_what_it_is_fused_into(report, draft):
    page = Tags(render_html(report, draft))
    for place in report.placement:
        assert place.node in page.text
    assert "2 integer kernels 1 moves integers 1 float" in page.words
    assert "part of conv_a" in page.words


def test_nothing_is_loaded_from_anywhere(report, draft):
    html = render_html(report, draft)
    page = Tags(html)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "action", "srcset")]
    assert not re.search(r"https?://|//[a-z]|@import|url\(", html)
    assert "default-src 'none'" in html


def _with_provider(report, **more):
    """A report of two graphs that were run on their providers; ``more`` are fields of the second's check."""
    figure = Metric(name="SQNR on qnn", value=33.1, unit="dB", samples=4, source="4 samples on QNN")
    ran = ProviderCheck(
        place="qnn", provider="QNN", status="ran", version="onnxruntime-qnn 2.7", metrics=(figure,), text="took all 41"
    )
    absent = {
        "place": "arm64:max",
        "provider": "CPU",
        "status": "absent",
        "text": "not verified on arm64:max here",
        "remedy": "edgeq doctor --install-provider arm64",
    }
    fallback = GraphReport(
        target="android",
        precision="w8",
        provider="CPUExecutionProvider",
        metrics=(Metric(name="cosine", value=0.98765, samples=4, source="4 samples"),),
        primary="cosine",
        size=Size(quantized_bytes=190, float_bytes=380),
        kinds={"integer": 40, "float": 2},
        checks=(ProviderCheck(**{**absent, **more}),),
        findings=(Finding(severity="error", text="two nodes are slow"),),
    )
    return msgspec.structs.replace(report, checks=(ran,), fallback=fallback)


def test_the_page_says_what_the_provider_said_and_shows_the_fallback(report, draft):
    met = msgspec.structs.replace(_with_provider(report), contract=None, findings=())
    page = Tags(render_html(met, draft))
    for text in (
        "On the provider itself",
        "qnn ran SQNR: 33.1 dB took all 41 onnxruntime-qnn 2.7",
        "is the same model for android in w8",
        "0.9877",
        "arm64:max absent",
        "What to do: edgeq doctor --install-provider arm64",
        "190 B, 2.00 times smaller than the float model. Nodes: 40 integer, 2 float.",
        "two nodes are slow",
        "Has a problem to look at",
    ):
        assert text in page.words, text


def test_what_a_provider_said_stays_text(report, draft):
    hostile = _with_provider(report, place=HOSTILE, text=HOSTILE, remedy=HOSTILE, version=HOSTILE)
    page = Tags(render_html(hostile, draft))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.words.count("<script>alert(1)</script>") == 4


HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


def test_text_from_a_model_stays_text(report, draft):
    replace = msgspec.structs.replace
    hostile = replace(
        report,
        name=HOSTILE,
        placement=(*report.placement, replace(report.placement[3], node=HOSTILE, why=HOSTILE)),
        blame=tuple(replace(error, node=HOSTILE, tensor=HOSTILE) for error in report.blame),
        plan=tuple(replace(row, tensor=HOSTILE) for row in report.plan),
        findings=(Finding(severity="error", text=HOSTILE, nodes=(HOSTILE,), remedy=HOSTILE),),
        metrics=(Metric(name="cosine", value=0.9, samples=1, source=HOSTILE),),
        primary="cosine",
        notes=(HOSTILE,),
    )
    page = Tags(render_html(hostile, replace(draft, provenance={HOSTILE: HOSTILE})))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert "49" not in page.words
    assert page.words.count("<script>alert(1)</script>") >= 10
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_what_was_not_measured_is_not_available(report, draft):
    empty = msgspec.structs.replace(
        report,
        metrics=(),
        primary=None,
        drop=None,
        latency=None,
        memory=None,
        float_memory=None,
        size=None,
        placement=(),
        blame=(),
        plan=(),
        contract=None,
        findings=(),
        parity=None,
    )
    page = Tags(render_html(empty, draft))
    assert "Made without a contract" in page.words
    assert "Nothing was measured yet." in page.words
    assert page.words.count("n/a") >= 7
    assert "Some CPU" not in page.words


@pytest.mark.parametrize(
    ("met", "severity", "text", "tone"),
    [
        (True, "info", "Meets its contract", "good"),
        (True, "error", "Meets its contract, but has a problem to look at", "warn"),
        (False, "error", "Misses its contract", "bad"),
        (None, "error", "Has a problem to look at", "warn"),
    ],
)
def test_the_verdict(report, draft, met, severity, text, tone):
    contract = None if met is None else Contract(clauses=(), met=met)
    changed = msgspec.structs.replace(report, contract=contract, findings=(Finding(severity=severity, text="x"),))
    html = render_html(changed, draft)
    assert text in Tags(html).words
    assert f'class="verdict {tone}"' in html


def test_fallback_to_the_cpu_is_counted_apart(report, draft):
    npu = msgspec.structs.replace(draft.provider, name="QNNExecutionProvider")
    there = NodePlacement(node="a", op_type="Conv", provider="QNNExecutionProvider", runs_as="Conv", kind="integer")
    away = NodePlacement(node="b", op_type="Erf", provider="CPUExecutionProvider", runs_as="Erf", kind="float")
    page = Tags(
        render_html(
            msgspec.structs.replace(report, placement=(there, away)), msgspec.structs.replace(draft, provider=npu)
        )
    )
    assert "1 integer kernels 1 fell back to the CPU" in page.words


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n/a"), (0, "0"), (0.01234, "0.0123"), (4.567, "4.57"), (97.3, "97.3"), (1240.4, "1240"), (100.0, "100")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_the_front_is_shown_with_the_point_that_was_taken(report, draft):
    point = FrontPoint(
        number=0, formats={"w8a8": 9}, changed={}, predicted_db=18.2, predicted_ms=4.5, predicted_bytes=5_000_000,
        sqnr_db=18.0, drop=1.5, latency_ms=4.6, size_bytes=5_010_000, why="does not keep the limits: <script>",
    )  # fmt: skip
    other = msgspec.structs.replace(
        point, number=1, formats={"float": 2, "w8a8": 7}, changed={"c": "float"}, predicted_ms=6.0, sqnr_db=24.0,
        why=None, taken=True,
    )  # fmt: skip
    last = msgspec.structs.replace(other, number=2, predicted_ms=9.0, predicted_db=None, sqnr_db=None, taken=False)
    row = Sensitivity(
        group="<b>conv</b>", nodes=("c",), ops={"Conv": 1, "Clip": 2}, format="w8a8", formats=("w8a8", "float"),
        noise=0.01, share=0.62, db=20.0,
    )  # fmt: skip
    front = Front(precision="w8a8", measured=True, points=(point, other, last), sensitivity=(row,))
    page = Tags(render_html(msgspec.structs.replace(report, front=front), draft))
    for text in ("Mixes of formats", "2 float, 7 w8a8", "24.0 dB", "does not keep the limits: <script>", "<b>conv</b>",
                 "Conv, 2 Clip", "62.0 % 20.0 dB", "exact"):  # fmt: skip
        assert text in page.words, text
    kinds = [value for key, value in page.attributes if key == "class" and str(value).startswith("mix ")]
    assert kinds == ["mix tried", "mix taken", "mix predicted"]
    without = Tags(render_html(report, draft))
    assert "Mixes of formats" not in without.words


def test_each_block_tells_what_was_kept_for_it(report, draft):
    def trial(block: str, method: str, before: float | None, after: float | None, kept: bool) -> Trial:
        return Trial(block=block, method=method, before_db=before, after_db=after, kept=kept)

    trials = (
        trial("stem", "rounding of <conv>", 10.0, 12.5, True),
        trial("stem", "range times 0.90 of x", 12.5, 11.0, False),
        trial("stem", "sequential bias correction of c", 12.5, 14.0, True),
        trial("head", "rounding of fc", 20.0, 19.0, False),
        trial("odd", "rounding of gate", None, 3.0, False),
    )
    page = Tags(render_html(msgspec.structs.replace(report, trials=trials), draft))
    for text in ("5 changes were tried", "2 were kept", "10.0 dB 14.0 dB rounding of <conv> +2.5 dB",
                 "sequential bias correction of c +1.5 dB", "20.0 dB 20.0 dB nothing was better"):  # fmt: skip
        assert text in page.words, text
    assert "What was tried" not in Tags(render_html(report, draft)).words
