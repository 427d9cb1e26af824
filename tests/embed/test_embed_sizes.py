"""What projects weigh, which models their runtimes read, and the ort format: the same for all platforms."""

from __future__ import annotations

import hashlib
import platform as machine
import re
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from embed_models import MakeBundle, in_blocks, pass_through, with_fallback, with_model

import edgeq
from edgeq.bundle import Bundle
from edgeq.embedding import EmbedOptions
from edgeq.errors import ConfigError
from edgeq.graph import load_model, to_bytes
from edgeq.stages.embed import PLATFORMS, releases
from edgeq.stages.embed.platforms import wheels
from edgeq.stages.embed.project import Request
from edgeq.target import Provider

FORMATS = sorted(name for name, platform in PLATFORMS.items() if "format" in platform.options)
PINNED = ("android", "ios", "web")
OPERATORS = Path("size", "required_operators_and_types.config")

with_formats = pytest.mark.parametrize("platform", FORMATS)


def answers(model: Path | bytes, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    payload = model if isinstance(model, bytes) else str(model)
    return list(onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"]).run(None, feed))


def request(bundle: Bundle, scratch: Path) -> Request:
    return Request(bundle, EmbedOptions(), scratch)


# -- sizes


@with_formats
def test_the_report_holds_what_the_files_weigh(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    found = edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out")
    model, *others = found.sizes
    data = bundle.model.read_bytes()
    assert model.bytes == len(data)
    assert model.note.startswith(f"{len(zlib.compress(data, 6)) / 1e6:.2f} MB ")
    for one, both in pairwise(others):
        if both.part.startswith("together"):
            assert both.bytes == model.bytes + (one.bytes or 0)
    assert any(row.part.startswith("together") for row in others) == (platform != "ios")
    text = (found.path / "README.md").read_text()
    for row in found.sizes:
        assert f"| {row.part} | {'n/a' if row.bytes is None else row.bytes} | {row.note} |" in text


@with_formats
def test_a_reduced_build_is_told_where_there_can_be_one(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    alone = edgeq.embed(make_bundle().path, platform=platform, output=tmp_path / "alone")
    told = [row.part for row in alone.sizes].count("reduced runtime")
    assert told == (alone.path / OPERATORS).exists() == (platform != "python")
    assert ("--include_ops_by_config" in (alone.path / "README.md").read_text().replace("-ops-by-", "_ops_by_")) == told
    two = with_fallback(make_bundle("two"))  # such a build has the CPU's kernels only
    both = edgeq.embed(two.path, platform=platform, output=tmp_path / "both")
    assert not (both.path / OPERATORS).exists()
    assert "reduced runtime" not in [row.part for row in both.sizes]


def test_wheels_are_those_of_the_target(make_bundle: MakeBundle) -> None:
    assert [size.place for size in wheels.wheel_sizes("linux-x64@avx2")] == ["linux-x64"]
    assert len(wheels.library_sizes("android")) == len(wheels.WHEELS)


def test_the_library_has_the_size_that_is_told() -> None:
    if onnxruntime.__version__ != wheels.VERSION or machine.machine() != "x86_64":
        pytest.skip("another release of ONNX Runtime, or another processor")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    assert library.stat().st_size == wheels.WHEELS["linux-x64"].library


# -- what a release reads


@pytest.mark.parametrize("which", ["opset", "IR version"])
def test_the_table_of_releases_is_true_of_the_installed_one(which: str) -> None:
    model = pass_through(["x"], ir.DataType.FLOAT, ["n"])
    opset, ir_version = releases.reads(onnxruntime.__version__)

    def loads(number: int) -> bool:
        if which == "opset":
            model.graph.opset_imports[""] = number
        else:
            model.ir_version = number
        try:
            answers(to_bytes(model), {"x": np.ones(1, np.float32)})
        except Exception:  # ONNX Runtime's exceptions share no public base class
            return False
        return True

    newest = opset if which == "opset" else ir_version
    assert loads(newest)
    assert not loads(newest + 1) or onnxruntime.__version__ > wheels.VERSION


def test_versions_that_were_not_measured_read_what_the_one_before_them_does() -> None:
    assert releases.reads("1.25.1") == releases.reads("1.24.2") != releases.reads("1.23.2")
    assert releases.oldest_release(21, 10) == "1.18"
    assert releases.oldest_release(21, 11) == "1.23"
    assert releases.oldest_release(999, 10) is None


@pytest.mark.parametrize(
    ("versions", "needed", "raised"),
    [
        (">=1.24.2", "1.18", ">=1.24.2"),
        (">=1.24.2", "1.32.0", ">=1.32.0"),
        (">=1.24.2,<1.31", "1.27", ">=1.24.2,<1.31,>=1.27"),
        ("==1.30.0", "1.24", "==1.30.0"),
        ("", "1.24", ">=1.24"),
    ],
)
def test_a_requirement_is_raised_to_what_the_model_needs(versions: str, needed: str, raised: str) -> None:
    assert releases.at_least(versions, needed) == raised


def newer(bundle: Bundle, *, opset: int = 21, ir_version: int = 10) -> Bundle:
    model = load_model(bundle.model)
    model.ir_version = ir_version
    model.graph.opset_imports[""] = opset
    return with_model(bundle, model)


@pytest.mark.parametrize("platform", PINNED)
def test_a_model_that_is_too_new_for_the_pinned_runtime_is_refused(
    platform: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    for name, changes in (("a", {"ir_version": 99}), ("b", {"opset": 99})):
        bundle = newer(make_bundle(name), **changes)
        with pytest.raises(ConfigError, match=r"has opset \d+ and IR version \d+; .* reads up to 2\d and 13") as caught:
            edgeq.embed(bundle.path, platform=platform, output=tmp_path / f"{name}-out")
        assert f"--target {platform}" in str(caught.value)
        assert not (tmp_path / f"{name}-out").exists()


def test_where_any_release_does_the_project_asks_for_one_that_reads_the_model(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    if releases.reads(onnxruntime.__version__)[1] < 13:
        pytest.skip("the installed ONNX Runtime does not read the model either")
    old, new = make_bundle("old"), newer(make_bundle("new"), ir_version=13)
    for bundle, needed in ((old, ">=1.24"), (new, ">=1.24")):
        text = (edgeq.embed(bundle.path, platform="python").path / "pyproject.toml").read_text()
        assert f'"onnxruntime{needed}"' in text
    new = newer(make_bundle("newer"), opset=26)
    text = (edgeq.embed(new.path, platform="python").path / "pyproject.toml").read_text()
    assert '"onnxruntime>=1.27"' in text
    text = (edgeq.embed(new.path, platform="c").path / "README.md").read_text()
    assert "needs ONNX Runtime 1.27 or later" in " ".join(text.split())


# -- the ort format


@with_formats
def test_the_ort_format_answers_the_same(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    found = edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out", model_format="ort")
    (model,) = found.path.rglob("model.ort")
    assert not list(found.path.rglob("*.onnx"))
    feed = {"x": np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(answers(model, feed), answers(bundle.model, feed))
    assert found.sizes[0].bytes == model.stat().st_size


@with_formats
def test_a_conversion_is_kept_and_code_that_names_it_with_it(
    platform: str, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeq.stages.embed import ort_format

    convert, conversions = ort_format._convert, []

    def other_bytes_each_time(model: Path, session: object, goal: Path) -> None:
        convert(model, session, goal)  # type: ignore[arg-type]
        conversions.append(goal)
        goal.write_bytes(goal.read_bytes() + bytes(len(conversions)))

    monkeypatch.setattr(ort_format, "_convert", other_bytes_each_time)
    bundle, folder = make_bundle(), tmp_path / "out"
    first = edgeq.embed(bundle.path, platform=platform, output=folder, model_format="ort")
    (model,) = first.path.rglob("model.ort")
    data = model.read_bytes()
    again = edgeq.embed(bundle.path, platform=platform, output=folder, name="Other")
    (model,) = folder.rglob("model.ort")  # iOS has the name in its path
    assert model.read_bytes() == data
    assert (model.relative_to(folder).as_posix() in again.unchanged) == (platform != "ios")
    assert len(conversions) == 1
    if platform in ("web", "react-native"):
        (digest,) = re.findall(r'model\.ort", sha256: "(\w+)"', (folder / "src" / "index.ts").read_text())
        assert digest == hashlib.sha256(data).hexdigest()
    model.write_bytes(b"mine")
    edited = edgeq.embed(bundle.path, platform=platform, output=folder)
    assert model.relative_to(folder).as_posix() in edited.kept
    assert model.read_bytes() == b"mine"


def test_a_model_that_leaves_the_cpu_has_no_ort_format(make_bundle: MakeBundle, tmp_path: Path) -> None:
    provider = Provider(name="WebGpuExecutionProvider", package="onnxruntime-web", version=">=1.27")
    bundle = make_bundle(provider=provider)
    for platform in ("web", "android", "c"):
        with pytest.raises(ConfigError, match="WebGpuExecutionProvider, which takes no model in the ort format"):
            edgeq.embed(bundle.path, platform=platform, output=tmp_path / platform, model_format="ort")
        assert edgeq.embed(bundle.path, platform=platform, output=tmp_path / platform).written


def test_only_the_graph_of_the_cpu_is_converted(make_bundle: MakeBundle, tmp_path: Path) -> None:
    provider = Provider(name="CoreMLExecutionProvider", package="onnxruntime-objc", version=">=1.24")
    bundle = with_fallback(make_bundle(provider=provider))
    found = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "out", model_format="ort").path
    assert [path.parent.name for path in found.rglob("model.ort")] == ["fallback"]
    assert [path.parent.name for path in found.rglob("model.onnx")] == ["Assets"]


def test_what_an_older_runtime_does_not_read_is_not_converted_for_it(make_bundle: MakeBundle, tmp_path: Path) -> None:
    if not releases._parse(onnxruntime.__version__) >= (1, 29):
        pytest.skip("the installed ONNX Runtime writes what all read")
    bundle = with_model(make_bundle(shape=("n", 32), labels=()), in_blocks())
    with pytest.raises(ConfigError, match=r"MatMulNBits, which ONNX Runtime .* 1\.24\.2 does not read") as caught:
        edgeq.embed(bundle.path, platform="ios", output=tmp_path / "ios", model_format="ort")
    assert "--format onnx" in str(caught.value)
    onnx = edgeq.embed(bundle.path, platform="ios", output=tmp_path / "ios")
    assert "reduced runtime" not in [row.part for row in onnx.sizes]
    assert releases.reduced_build(request(bundle, tmp_path), "1.29.0") is not None
    assert edgeq.embed(bundle.path, platform="web", output=tmp_path / "web", model_format="ort").written
