"""What a user may ask for, and how the answer is judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from small_models import parse, quantized, weights

from edgeq.errors import ConfigError
from edgeq.qtypes import Scheme
from edgeq.report import Machine, Metric, Report, Size
from edgeq.request import (
    Limits,
    broken_contract,
    library_versions,
    parse_bytes,
    parse_scheme,
    parse_shapes,
    planned_placement,
    shortfall,
)
from edgeq.target import load_target

SIZE = Size(quantized_bytes=5_000_000, float_bytes=20_000_000)


@dataclass(frozen=True)
class Measured:
    drop: float
    sqnr_db: float | None = 30.0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        agreement = Metric(name="agreement", value=99.0, unit="%", samples=1, source="s")
        if self.sqnr_db is None:
            return (agreement,)
        return (agreement, Metric(name="sqnr", value=self.sqnr_db, unit="dB", samples=1, source="s"))


def test_no_limit_is_no_contract() -> None:
    assert Limits().judge(Measured(50.0), SIZE) is None


@pytest.mark.parametrize(
    ("limits", "measured", "met"),
    [
        (Limits(max_drop=0.5), Measured(0.4), True),
        (Limits(max_drop=0.5), Measured(0.5), True),
        (Limits(max_drop=0.5), Measured(0.6), False),
        (Limits(max_drop=0.5), Measured(-1.0), True),  # better than the float model
        (Limits(max_drop=0.0), Measured(0.0), True),
        (Limits(max_drop=0.5), Measured(float("nan")), False),
        (Limits(max_drop=0.5), Measured(100 * (0.805 - 0.8)), True),  # 0.5 but for the last bit
        (Limits(min_sqnr_db=30), Measured(0, 30.0), True),
        (Limits(min_sqnr_db=30), Measured(0, 29.9), False),
        (Limits(min_sqnr_db=30), Measured(0, None), False),  # nothing measured is nothing proven
        (Limits(max_size_bytes=5_000_000), Measured(0), True),
        (Limits(max_size_bytes=4_999_999), Measured(0), False),
        (Limits(0.5, 30, 5_000_000), Measured(0.5, 30.0), True),
        (Limits(0.5, 30, 5_000_000), Measured(0.5, 20.0), False),
    ],
)
def test_a_contract_is_met_or_not(limits: Limits, measured: Measured, met: bool) -> None:
    contract = limits.judge(measured, SIZE)
    assert contract is not None
    assert contract.met is met


def test_the_best_of_those_that_miss_is_the_one_that_misses_least() -> None:
    def missed(limits: Limits, measured: Measured, size: Size = SIZE) -> float:
        return shortfall(limits.judge(measured, size))

    assert shortfall(None) == missed(Limits(0.5, 30, 5_000_000), Measured(0.5, 30.0)) == 0
    assert missed(Limits(max_drop=0.5), Measured(0.75)) == pytest.approx(0.5)
    assert missed(Limits(max_drop=0.0), Measured(0.75)) == pytest.approx(0.75)
    assert missed(Limits(max_drop=0.5), Measured(float("nan"))) == float("inf")
    assert missed(Limits(min_sqnr_db=30), Measured(0, None)) == float("inf")
    assert missed(Limits(0.5, 30), Measured(0.75, 15.0)) == pytest.approx(1.0)
    # Where only the size is too large, the smaller package is the better one, although it loses more.
    small = Size(quantized_bytes=3_000_000, float_bytes=20_000_000)
    limits = Limits(max_size_bytes=2_000_000)
    assert missed(limits, Measured(1.0), small) < missed(limits, Measured(0.1), SIZE)


def test_a_broken_contract_says_by_how_much() -> None:
    limits = Limits(max_drop=0.5, min_sqnr_db=30, max_size_bytes=4_000_000)
    contract = limits.judge(Measured(0.75, None), SIZE)
    machine = Machine(cpu="c", architecture="a", isa=(), cores=1, os="o", python="3", onnxruntime="1")
    report = Report(
        edgeq="0", name="n", target="android", precision="w8a8", machine=machine, primary="top-1", contract=contract
    )
    what, where, remedy = broken_contract(report, Path("best"))
    assert what == (
        "the contract is not met with w8a8 on android: "
        "--max-drop 0.5 points: the best found has 0.75 points, 0.25 points off; "
        "--min-sqnr 30 dB: the best found has nothing measured, nothing measured off; "
        "--max-size 4,000,000 bytes: the best found has 5,000,000 bytes, 1,000,000 bytes off "
        "(primary metric: top-1)"
    )
    assert where == "the best result is in best"
    assert "relax the limit" in remedy


# -- precisions


def test_a_precision_that_the_target_has() -> None:
    assert parse_scheme("w8a8", load_target("android")) == Scheme(8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8", "unknown precision 'int8': write w<bits>a<bits>"),
        ("w4_b20", "block size must be a power of two of at least 16, got 20"),
        ("w8a16", "linux-x64 has no 16-bit activations, which 'w8a16' asks for"),
    ],
)
def test_a_precision_that_makes_no_sense(name: str, message: str) -> None:
    target = load_target("linux-x64")
    with pytest.raises(ConfigError, match=message) as caught:
        parse_scheme(name, target)
    assert caught.value.remedy == f"linux-x64 suggests: {', '.join(target.precisions)}"


def test_blocks_beside_quantized_activations_are_refused() -> None:
    with pytest.raises(ConfigError, match="linux-x64 has no integer kernels for weights in blocks, which 'w8a8_b32'"):
        parse_scheme("w8a8_b32", load_target("linux-x64"))
    assert parse_scheme("w8_b32", load_target("linux-x64")).block == 32


# -- sizes and shapes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("123", 123),
        ("5MB", 5_000_000),
        ("5M", 5_000_000),
        ("5MiB", 5 * 2**20),
        ("1.5 kB", 1500),
        ("2KiB", 2048),
        ("1GiB", 2**30),
        (" 7 b ", 7),
        ("0", 0),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5TB", "5 apples", "1e6", "5,5MB", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' is not a size") as caught:
        parse_bytes(text)
    assert caught.value.remedy == "write bytes, or a number with kB, MB, GB or MiB"


def test_shapes() -> None:
    assert parse_shapes(()) == {}
    assert parse_shapes(("batch=1", "input_ids:1=128", "a=b=3")) == {"batch": 1, "input_ids:1": 128, "a=b": 3}


@pytest.mark.parametrize("item", ["batch", "batch=", "=3", "batch=0", "batch=-1", "batch=1.5", "batch=x", ""])
def test_what_fixes_no_dimension(item: str) -> None:
    with pytest.raises(ConfigError, match=f"'{item}' fixes no dimension") as caught:
        parse_shapes((item,))
    assert "NAME=SIZE" in str(caught.value.remedy)


# -- placement


def test_a_planned_placement_has_every_node_and_its_reason() -> None:
    model = parse(
        "g (float[1,3,8,8] x) => (float y) { a = Conv(x, w) r = Relu(a) f = Flatten(r) y = Tanh(f) }",
        w=weights(4, 3, 3, 3),
    )
    chain = quantized(model)
    placed = planned_placement(chain.shaped, chain.plan)
    assert [(p.node, p.kind) for p in placed] == [("a", "integer"), ("r", "fused"), ("f", "float"), ("y", "float")]
    assert {p.runs_as for p in placed} == {"not run here"}
    assert all(p.why for p in placed)


def test_versions_of_what_decides_the_bytes() -> None:
    versions = library_versions()
    assert set(versions) == {"onnx", "onnx-ir", "onnxruntime", "numpy"}
    assert all(versions.values())
