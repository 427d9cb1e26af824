from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeq import graph, runtime
from edgeq.errors import ExportError
from edgeq.stages.export import load_source

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, scale=None, *, pair=None):
        y = self.drop(self.linear(x))
        return y if pair is None else y + pair[0] * pair[1]


class Bomb:
    """Unpickling it makes a folder: what hostile weights could do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    rows = torch.export.Dim("rows")
    return torch.export.export(Net().eval(), (torch.randn(2, 4),), dynamic_shapes={"x": {0: rows}})


@pytest.fixture
def saved(program, tmp_path: Path) -> Path:
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def test_a_saved_program(saved: Path, program) -> None:
    source = load_source(saved)
    assert source.name == "net"
    assert source.provenance["route"] == "exported-program"
    assert [info.describe() for info in graph.input_infos(source.model)] == ["x: float32[batch, 4]"]
    x = torch.randn(5, 4)
    expected = program.module()(x).detach().numpy()
    np.testing.assert_allclose(runtime.run_model(source.model, {"x": x.numpy()})["output"], expected, atol=1e-6)
    assert source.parity is not None
    assert source.parity.sqnr_db > 100


def test_a_program_in_memory_with_nested_and_absent_arguments() -> None:
    pair = (torch.ones(3), torch.full((3,), 2.0))
    program = torch.export.export(Net().eval(), (torch.randn(2, 4), None), {"pair": pair})
    source = load_source(program)
    assert list(source.example_inputs) == ["x", "pair_0", "pair_1"]
    given = {"x": np.ones((2, 4), np.float32), "pair_0": np.ones(3, np.float32), "pair_1": np.ones(3, np.float32)}
    assert load_source(program, example_inputs=given).example_inputs["x"].sum() == 8
    with pytest.raises(ExportError, match=r"do not fit the program[\s\S]*x, pair_0, pair_1"):
        load_source(program, example_inputs=np.ones((2, 4), np.float32))


def test_a_program_traced_in_training_mode_is_refused() -> None:
    program = torch.export.export(Net().train(), (torch.randn(2, 4),))
    with pytest.raises(ExportError, match=r"traced in training mode[\s\S]*call module\.eval\(\)"):
        load_source(program)


def replace_entry(path: Path, ending: str, data: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, data if name.endswith(ending) else content)


def test_example_inputs_that_need_unpickling_are_refused(saved: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Bomb(tmp_path / "boom"), buffer)
    replace_entry(saved, "sample_inputs/model.pt", buffer.getvalue())
    with pytest.raises(ExportError, match=r"the file can run code when it is loaded: .*sample_inputs/model\.pt"):
        load_source(saved)
    assert not (tmp_path / "boom").exists()


def test_pickled_weights_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        name = next(name for name in archive.namelist() if name.endswith("weights_config.json"))
        config = archive.read(name).replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    replace_entry(saved, "weights_config.json", config)
    with pytest.raises(ExportError, match=r"'linear\.weight' is stored as a pickle"):
        load_source(saved)


def test_compiled_code_and_double_entries_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("net/data/aotinductor/model/net.so", b"")
    with pytest.raises(ExportError, match=r"it holds compiled code \(net/data/aotinductor/model/net\.so\)"):
        load_source(saved)


def test_two_entries_of_one_name_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(ExportError, match="two entries of one name"):
        load_source(saved)


def test_the_loader_itself_is_restricted(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the look through the archive missed something, torch must not unpickle it."""
    buffer = io.BytesIO()
    torch.save(Bomb(tmp_path / "boom"), buffer)
    replace_entry(saved, "sample_inputs/model.pt", buffer.getvalue())
    monkeypatch.setattr("edgeq.stages.export.exported_program._needs_trust", lambda path: None)
    with pytest.raises(ExportError, match="cannot load the program"):
        load_source(saved)
    assert not (tmp_path / "boom").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the file does not exist"):
        load_source(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ExportError, match=r"not a program saved by torch\.export\.save"):
        load_source(tmp_path / "text.pt2")
    with zipfile.ZipFile(tmp_path / "zip.pt2", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ExportError, match="cannot load the program"):
        load_source(tmp_path / "zip.pt2")
