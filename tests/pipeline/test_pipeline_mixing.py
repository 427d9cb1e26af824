"""Mixed precision through the whole job: contracts, fronts, other points, and speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import parse, weights

from edgeq.errors import ConfigError, ContractError
from edgeq.front import Front
from edgeq.graph import save_model
from edgeq.pipeline import Job, export
from edgeq.pipeline.choosing import best_attempt
from edgeq.pipeline.judge import Attempt, attempt
from edgeq.pipeline.mixing import _fast_and_small, mix, sensitivity_of
from edgeq.pipeline.study import Study, study
from edgeq.qtypes import Scheme
from edgeq.report import Report
from edgeq.request import Data, Exported, Limits
from edgeq.stages.mix import FLOAT, Link, Option, Problem, Unit, total

CONVS = """g (float[1,3,16,16] x) => (float[1,10] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1) r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2) r2 = Relu(c2)
    c3 = Conv<pads=[1,1,1,1]>(r2, w3) r3 = Relu(c3)
    c4 = Conv<pads=[1,1,1,1]>(r3, w4) r4 = Relu(c4)
    c5 = Conv<pads=[1,1,1,1]>(r4, w5) r5 = Relu(c5)
    p = GlobalAveragePool(r5) f = Flatten(p) y = Gemm(f, w6) }"""


def poisoned(folder: Path) -> Path:
    """Five convolutions; one channel between the second and the third is 300 times the others, and read so."""
    w = [weights(16, 3 if n == 0 else 16, 3, 3, seed=n) for n in range(5)]
    w[1][0] *= 300
    w[2][:, 0] /= 300
    held = {f"w{n + 1}": array for n, array in enumerate(w)}
    save_model(parse(CONVS, **held, w6=weights(16, 10, seed=9)), folder / "net.onnx")
    return folder / "net.onnx"


def job(folder: Path, target: str = "linux-x64@avx2", **more: object) -> Job:
    """Without smoothing, which would take the poison out; for a target whose times are estimated, not measured."""
    path = folder / "net.onnx"
    if not path.exists():
        poisoned(folder)
    rows = np.random.default_rng(3).standard_normal((40, 3, 16, 16)).astype(np.float32)
    options = {"effort": 0, "smoothing": False, "measure": False, "cache": folder / "cache", **more}
    return Job(path, target, data=Data(rows), **options)  # type: ignore[arg-type]


def carried_out(folder: Path, limits: Limits, name: str = "out", **more: object) -> Exported:
    return export(job(folder, **more), output=folder / name, limits=limits, overwrite=True)


def sqnr(report: Report) -> float:
    return next(metric.value for metric in report.metrics if metric.unit == "dB")


def front_of(exported: Exported) -> Front:
    assert exported.report.front is not None
    return exported.report.front


def test_the_poisonous_layers_go_to_floats_and_the_contract_is_met(tmp_path: Path) -> None:
    with pytest.raises(ContractError) as plain:
        carried_out(tmp_path, Limits(min_sqnr_db=30), precision="w8a8")
    assert plain.value.exported.report.front is None, "who names a precision gets that one"
    found = carried_out(tmp_path, Limits(min_sqnr_db=30))
    assert found.report.precision == "w8a8 mixed"
    assert sqnr(found.report) >= 30 > sqnr(plain.value.exported.report) + 5
    kinds = {place.node: place.kind for place in found.report.placement}
    assert kinds["c2"] == "float", "what computes the poison"
    assert sum(kinds[f"c{n}"] == "integer" for n in range(1, 6)) >= 2
    taken = [point for point in front_of(found).points if point.taken]
    assert len(taken) == 1
    assert taken[0].why is None
    assert taken[0].sqnr_db == sqnr(found.report)
    assert all(point.why for point in front_of(found).points if not point.taken)
    worst = front_of(found).sensitivity[0]
    assert worst.group == "c2"
    assert worst.share > 0.5


def test_the_front_trades_noise_for_time(tmp_path: Path) -> None:
    points = front_of(carried_out(tmp_path, Limits(min_sqnr_db=30))).points
    assert [point.number for point in points] == list(range(len(points)))
    assert len(points) >= 3
    times = [point.predicted_ms for point in points]
    noises = [10 ** (-point.predicted_db / 10) if point.predicted_db is not None else 0.0 for point in points]
    assert times == sorted(times)
    assert noises == sorted(noises, reverse=True)


def test_another_point_is_that_point(tmp_path: Path) -> None:
    first = front_of(carried_out(tmp_path, Limits(min_sqnr_db=30)))
    number = next(point.number for point in reversed(first.points) if not point.taken and point.changed)
    other = carried_out(tmp_path, Limits(pick=number), "other")
    picked = next(point for point in front_of(other).points if point.taken)
    assert picked.number == number
    assert picked.changed == first.points[number].changed
    floats = {name for name, own in picked.changed.items() if own == "float"}
    kinds = {place.node: place.kind for place in other.report.placement}
    assert floats
    assert all(kinds[name] in ("float", "fused", "moves data") for name in floats)
    assert {kinds[f"c{n}"] for n in range(1, 6) if f"c{n}" not in floats} <= {"integer"}
    with pytest.raises(ConfigError, match="the front has the points 0 to"):
        carried_out(tmp_path, Limits(pick=99), "none")


def test_the_same_twice(tmp_path: Path) -> None:
    """With the cache and without it: times are remembered, everything else follows from the inputs."""
    one, two = (front_of(carried_out(tmp_path, Limits(min_sqnr_db=30), name)) for name in ("one", "two"))
    assert one == two
    assert (
        carried_out(tmp_path, Limits(min_sqnr_db=30), "three", cache=None).report.front.sensitivity == one.sensitivity
    )


@pytest.mark.torch
def test_the_ranking_is_by_gradients_where_torch_runs_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    scored = sensitivity_of(job(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    measured = sensitivity_of(job(tmp_path))
    assert (scored.method, measured.method) == ("taylor", "measured")
    assert all(sum(point.formats.values()) == sum(scored.points[0].formats.values()) > 0 for point in scored.points)
    assert scored.sensitivity[0].group == measured.sensitivity[0].group == "c2"
    assert {row.group for row in scored.sensitivity} == {row.group for row in measured.sensitivity}


def test_what_no_mix_can_meet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ContractError) as missed:
        carried_out(tmp_path, Limits(min_sqnr_db=190))
    report = missed.value.exported.report
    assert report.front is not None
    assert any("does not keep the limits" in (point.why or "") for point in report.front.points)


def test_a_limit_on_latency_needs_a_latency(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--no-measure leaves latency out"):
        carried_out(tmp_path, Limits(max_latency_ms=5))
    with pytest.raises(ConfigError, match="its latency is n/a here"):
        carried_out(tmp_path, Limits(max_latency_ms=5), target="android-npu", measure=True)


@pytest.mark.slow
def test_a_limit_on_latency_is_judged(tmp_path: Path) -> None:
    found = carried_out(tmp_path, Limits(max_latency_ms=1000.0), target="linux-x64", measure=True, seconds=0.05)
    assert found.report.contract is not None
    clause = found.report.contract.clauses[0]
    assert (clause.option, clause.met) == ("--max-latency", True)
    assert clause.measured is not None
    assert 0 < clause.measured < 1000
    with pytest.raises(ContractError):
        carried_out(tmp_path, Limits(max_latency_ms=1e-6), target="linux-x64", measure=True, seconds=0.05)


def slow_integers(gains: list[float], conversion: float) -> Study:
    """A chain of layers that take 1 ms in floats and ``gains`` ms less in integers, with conversions between."""
    units = tuple(
        Unit(f"u{i}", (Option("w8a8", 8, 0.0, 1 - gain, 10.0), Option("float", FLOAT, 0.0, 1.0, 40.0)))
        for i, gain in enumerate(gains)
    )
    convert = {(8, FLOAT): conversion, (FLOAT, 8): conversion}
    ends = [None, *range(len(gains))]
    links = tuple(
        Link(f"t{i}", writer, (i,) if i < len(gains) else (), {}, convert, fed_out=i == len(gains))
        for i, writer in enumerate(ends)
    )
    return Study(Scheme.parse("w8a8"), (), {}, frozenset(), Problem(units, links), (0,) * len(gains), True)


def test_what_integers_slow_down_goes_to_floats_as_far_as_time_tells() -> None:
    study = slow_integers([0.5, 0.5, -2.0, 0.5, -2.0], 0.1)
    assert _fast_and_small(study) == (0, 0, 1, 0, 1)
    # Nothing gains, but one layer hardly loses: it stays in integers for its size.
    study = slow_integers([-0.1, -2.0, -2.0, -2.0], 0.05)
    chosen = _fast_and_small(study)
    assert chosen == (0, 1, 1, 1)
    assert total(study.problem, chosen).cost < total(study.problem, study.base).cost
    assert _fast_and_small(slow_integers([-3.0, -3.0], 0.5)) is None, "all of it is faster in floats"


def test_points_are_looked_for_with_less_effort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    efforts: list[tuple[int, int]] = []

    def counted(job: Job, scheme: Scheme, limits: Limits, formats: object = None) -> Attempt:
        efforts.append((job.effort, len(formats or {})))  # type: ignore[arg-type]
        return attempt(job, scheme, limits, formats)  # type: ignore[arg-type]

    monkeypatch.setattr("edgeq.pipeline.choosing.attempt", counted)
    best, _ = best_attempt(job(tmp_path, effort=1), Limits(min_sqnr_db=45))
    assert best.verdict.met
    assert best.verdict.mixed
    assert sum(effort == 1 and mixed > 0 for effort, mixed in efforts) in (1, 2)
    assert sum(effort == 0 and mixed > 0 for effort, mixed in efforts) >= 1
    assert best.plan.trials, "what is handed over was refined"


def test_where_it_is_too_large_fewer_bits_of_weights_alone_are_a_choice(tmp_path: Path) -> None:
    """On a CPU no integer kernel has 4-bit weights, but products with float activations do."""
    net = "g (float[1,8,256] x) => (float[1,8,256] y) { a = MatMul(x, w1) b = Tanh(a) y = MatMul(b, w2) }"
    save_model(parse(net, w1=weights(256, 256), w2=weights(256, 256, seed=1)), tmp_path / "net.onnx")
    rows = np.random.default_rng(3).standard_normal((16, 8, 256)).astype(np.float32)
    one = Job(tmp_path / "net.onnx", "linux-x64@avx2", Data(rows), effort=0, measure=False)
    scheme = Scheme.parse("w8a8")
    made = one.quantize(scheme)
    offered = {}
    for narrow in (False, True):
        units = study(one, scheme, made, narrow=narrow, inputs=one.sample).problem.units
        offered[narrow] = {option.name for unit in units for option in unit.options}
    assert "w4_b32" in offered[True] - offered[False]
    start = attempt(one, scheme, Limits(max_size_bytes=115_000))
    mixed = mix(one, start, Limits(max_size_bytes=115_000), attempt)
    assert mixed.verdict.met
    assert mixed.verdict.mixed > 0
    assert mixed.verdict.size.quantized_bytes < 115_000 < start.verdict.size.quantized_bytes
