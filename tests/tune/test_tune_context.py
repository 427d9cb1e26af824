"""Models compiled ahead of time: what the compiler wrote loads, and computes what the model computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import parse, quantized, weights

import edgeq
from edgeq.bundle import file_entry, read_bundle
from edgeq.errors import ConfigError, ProviderError
from edgeq.graph import save_model
from edgeq.sandbox import Task, find_sandbox
from edgeq.stages.tune.context import LEAST_DB, compile_contexts, find_chips
from edgeq.target import Provider, load_target

TARGET = load_target("android-npu")

TEXT = (
    "g (float[1,8,12,12] x) => (float[1,16] y) { c = Conv(x, w) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p) }"
)


@dataclass(frozen=True)
class Finished:
    """A model on disk and one batch for it."""

    path: Path
    feed: dict[str, np.ndarray]


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    pytest.importorskip("onnxruntime_qnn", reason="the compiler is in the package onnxruntime-qnn (edgeq[npu])")
    chain = quantized(parse(TEXT, w=weights(16, 8, 3, 3)), TARGET)
    save_model(chain.model, tmp_path / "model.onnx")
    return Finished(tmp_path / "model.onnx", chain.feed[0])


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("SM8750", ["SM8750"]),
        ("sm8750", ["SM8750"]),
        ("69", ["SM8750"]),
        ("v79", ["SM8750"]),
        ("v73", ["SM8550"]),
        ("60", ["SC8380XP"]),
        ("SM8550, SM8650,v75", ["SM8550", "SM8650"]),
    ],
)
def test_a_chip_has_several_names(asked: str, names: list[str]) -> None:
    assert [chip.name for chip in find_chips(asked, TARGET)] == names


def test_an_unknown_chip_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(ConfigError, match=r"no chip 'SM1'; it knows SM8350 \(v68\)"):
        find_chips("SM8750,SM1", TARGET)


def test_a_target_without_a_compiler_says_so() -> None:
    with pytest.raises(ConfigError, match="nothing is compiled ahead of time for linux-x64"):
        find_chips("SM8750", load_target("linux-x64"))


def test_chips_are_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chip 'SM1'"):
        edgeq.export("there-is-no-such-model.onnx", target="android-npu", output=tmp_path / "out", contexts=["SM1"])


def test_a_compiler_that_is_not_there_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(provider: Provider) -> None:
        raise ProviderError(f"{provider.name} is not installed")

    monkeypatch.setattr("edgeq.pipeline.job.check_available", missing)
    with pytest.raises(ProviderError, match="QNNExecutionProvider is not installed"):
        edgeq.export("there-is-no-such-model.onnx", target="android-npu", output=tmp_path / "out", contexts=["SM8750"])


def test_every_known_chip_has_a_variant() -> None:
    variants = {*TARGET.variants, *load_target("windows-npu").variants}
    assert TARGET.compile is not None
    assert {chip.variant for chip in TARGET.compile.known} <= variants


def test_a_context_computes_what_the_model_computes(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "contexts"
    (context,) = compile_contexts(finished.path, TARGET, ["SM8750"], folder, finished.feed)
    assert (context.model, context.data) == ("contexts/SM8750.onnx", ("contexts/SM8750_qnn.bin",))
    assert (context.chips, context.architectures, context.nodes, context.others) == (("SM8750",), ("v79",), 1, 0)
    assert context.sqnr_db is not None
    assert context.sqnr_db >= LEAST_DB
    assert context.options["soc_model"] == "69"
    assert "onnxruntime-qnn 2." in context.compiler
    assert {path.name for path in folder.iterdir()} == {"SM8750.onnx", "SM8750_qnn.bin"}
    written = onnx.load(folder / "SM8750.onnx")
    assert [node.op_type for node in written.graph.node] == ["EPContext"]
    (outcome,) = find_sandbox("qnn").run([Task(folder / "SM8750.onnx", TARGET.provider, (finished.feed,))])
    assert outcome.status == "ran"


@pytest.mark.slow
def test_a_context_has_the_same_bytes_every_time(finished: Finished, tmp_path: Path) -> None:
    entries = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        copy = tmp_path / name / "model.onnx"
        copy.write_bytes(finished.path.read_bytes())
        compile_contexts(copy, TARGET, ["SM8650"], tmp_path / name / "contexts", finished.feed)
        entries.append([file_entry(path) for path in sorted((tmp_path / name / "contexts").iterdir())])
    assert entries[0] == entries[1]


@pytest.mark.slow
def test_several_chips_share_a_file(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "contexts"
    both, one = compile_contexts(finished.path, TARGET, ["SM8550,SM8750", "SM8850"], folder, finished.feed)
    assert both.chips == ("SM8550", "SM8750")
    assert both.architectures == ("v73", "v79")
    assert both.sqnr_db is None
    assert "several chips" in str(both.note)
    assert (folder / "SM8550-SM8750_qnn.bin").stat().st_size > (folder / "SM8850_qnn.bin").stat().st_size
    assert one.sqnr_db is not None


def test_what_the_compiler_says_is_told(finished: Finished, tmp_path: Path) -> None:
    finished.path.write_bytes(b"no model")
    finished.path.with_name("onnxruntime.py").write_text("raise SystemExit('imported from the folder')")
    with pytest.raises(ProviderError, match=r"compiled no context for SM8750: Load model from .* failed"):
        compile_contexts(finished.path, TARGET, ["SM8750"], tmp_path / "contexts", finished.feed)
    assert not (tmp_path / "contexts").exists()


@pytest.mark.slow
def test_an_export_carries_its_contexts(finished: Finished, tmp_path: Path) -> None:
    """The bundle lists them with checksums, beside the model for every other chip; a second one has the same bytes."""
    save_model(parse(TEXT, w=weights(16, 8, 3, 3)), tmp_path / "float.onnx")
    data = [finished.feed] * 4
    manifests = []
    for name in ("first", "second"):
        edgeq.export(
            tmp_path / "float.onnx",
            target="android-npu",
            output=tmp_path / name,
            calibration=data,
            contexts=["SM8750"],
            measure=False,
        )
        bundle = read_bundle(tmp_path / name)
        assert {"model.onnx", "contexts/SM8750.onnx", "contexts/SM8750_qnn.bin"} <= set(bundle.manifest.files)
        (context,) = bundle.manifest.contexts
        assert context.sqnr_db is not None
        manifests.append((tmp_path / name / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]
    assert not list(tmp_path.glob("*.not-met"))
