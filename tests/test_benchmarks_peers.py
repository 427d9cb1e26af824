"""The code around the comparison with peers: what a tool is, how a process is run and limited, tables, metrics."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import parse, weights

from edgeq.graph import save_model

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from peers import judge, results, tools  # noqa: E402
from peers.networks import Network  # noqa: E402


def test_every_peer_is_pinned_and_its_adapter_knows_its_methods() -> None:
    methods = tools.load_methods()
    assert {"edgeq-1", "ort-minmax"} <= set(methods)
    for method in methods.values():
        assert all("==" in requirement for requirement in method.tool.requirements), method.tool.name
        assert set().union(*method.precisions.values()) <= {"w8a8", "w4a8", "w4a16"}
        assert any(method.precisions.values()), method.name
        source = (BENCHMARKS / "peers" / "adapters" / method.tool.adapter).read_text()
        known = {str(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        assert method.call in known, f"{method.tool.adapter} has no {method.call}"


def run(tmp_path: Path, code: str, **limit: float) -> tuple[tools.Cost, str | None]:
    return tools.run([sys.executable, "-c", code], tmp_path, tools.Limit(**limit))


def test_a_process_that_ends_well_has_a_cost_and_no_error(tmp_path: Path) -> None:
    cost, error = run(tmp_path, "held = bytearray(200_000_000); import time; time.sleep(0.3)")
    assert error is None
    assert cost.peak_mb > 200
    assert cost.wall_s >= 0.3


def test_an_error_is_one_line_without_folders(tmp_path: Path) -> None:
    _, error = run(tmp_path, "raise ValueError('no file /home/someone/models/a.onnx')")
    assert error == "ValueError: no file a.onnx"


@pytest.mark.parametrize(
    ("code", "limit", "said"),
    [
        ("held = bytearray(400_000_000); import time; time.sleep(60)", {"mb": 200}, "more than 200 MB"),
        ("import time; time.sleep(60)", {"wall_s": 0.2}, "more than 0.2 s"),
        ("while True: pass", {"cpu_s": 1}, "more than 1 CPU s"),
    ],
)
def test_a_process_is_stopped_at_its_limits(tmp_path: Path, code: str, limit: dict[str, float], said: str) -> None:
    cost, error = run(tmp_path, code, **limit)
    assert error == f"stopped: {said}"
    assert cost.wall_s < 50


def row(method: str, precision: str = "w8a8", **figures: object) -> dict[str, object]:
    key = {"network": "net", "precision": precision, "method": method, "samples": 0 if method == "float" else 100}
    return {**key, "tool": method, "date": "2026-01-01", "machine": "a machine", **figures}


def test_the_last_row_of_a_key_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    for value in (1.0, 2.0):
        results.write(file, row("edgeq-1", sqnr_db=value))
    results.write(file, row("ort-minmax"))
    assert [each.get("sqnr_db") for each in results.read(file)] == [2.0, None]


def test_the_page_has_a_table_for_each_precision_with_errors_as_results() -> None:
    rows = [
        row("ort-minmax", error="ImportError: no | such"),
        row("edgeq-1", sqnr_db=24.25, agreement=0.95, cpu_ratio=0.4817, mb=5.0, cpu_s=61.0),
        row("float", "float", accuracy=0.762),
        row("edgeq-1", "w4a8", sqnr_db=float("-inf")),
        row("edgeq-1", growth=True, layers=50) | {"samples": 256},
    ]
    page = results.page(rows, {"edgeq-1": "ours", "ort-minmax": "theirs"}, {"ort": "undeclared"})
    first, second = page.split("### net, W4A8, 100 samples")
    lines = [line for line in first.splitlines() if line.startswith("| `")]
    assert lines == [
        "| `float` |  |  |  | 76.2 % |  |  |  |  |  |",
        "| `edgeq-1` | 5.0 | 24.2 | 95.0 % |  |  | 0.482 | 61.0 |  |  |",
        "| `ort-minmax` | **fails**: ImportError: no   such |  |  |  |  |  |  |  |  |",
    ]
    assert "| `edgeq-1` |  | -inf |" in second
    assert "| net | 50 | edgeq-1 | 256 |" in second
    assert "undeclared" in second


def test_a_page_keeps_what_stands_around_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    results.put(page, "new")
    assert page.read_text() == f"before\n{results.BEGIN}\n\nnew\n\n{results.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        results.put(page, "new")


@pytest.fixture
def network(tmp_path: Path) -> Network:
    model = parse("g (float[1,3] x) => (float[1,4] y) { y = MatMul(x, w) }", w=weights(3, 4))
    save_model(model, tmp_path / "float.onnx")
    drawn = np.random.default_rng(0).standard_normal((8, 1, 3)).astype(np.float32)
    np.savez(tmp_path / "held_out.npz", x=drawn)
    best = (drawn[:, 0] @ weights(3, 4)).argmax(axis=1)
    accepted = np.stack([best, np.full(8, -1)], axis=1)
    accepted[0, 0] = (best[0] + 1) % 4  # float, too, has one wrong
    np.savez(tmp_path / "task.npz", **{"x": drawn, "right.classes": accepted})
    return Network("net", tmp_path, "cnn", "classes")


def test_float_is_judged_perfect_beside_itself_and_by_the_labels(network: Network) -> None:
    figures = judge.judge(network, network.float, "w8a8")
    assert figures == {"sqnr_db": float("inf"), "agreement": 1.0, "accuracy": 7 / 8}


def test_noise_of_a_tenth_is_20_db(network: Network, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    model = parse("g (float[1,3] x) => (float[1,4] y) { y = MatMul(x, w) }", w=weights(3, 4) * np.float32(1.1))
    save_model(model, other)
    figures = judge.judge(network, other, "w4a8")
    assert figures["sqnr_db"] == pytest.approx(20, abs=1e-3)
    assert figures["agreement"] == 1.0


def test_latency_is_a_ratio_to_float(network: Network) -> None:
    figures = judge.latency(network, {"copy": network.float}, seconds=0.01)
    assert figures["float"]["wall_ratio"] == 1.0
    assert 0.1 < figures["copy"]["cpu_ratio"] < 10


def test_a_quantizer_gets_no_more_samples_than_there_are(network: Network, tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", x=np.zeros((4, 1, 3), np.float32))
    with np.load(network.calibration(3)) as file:
        assert file["x"].shape == (3, 1, 3)
    with pytest.raises(ValueError, match="has 4 calibration samples, not 5"):
        network.calibration(5)
