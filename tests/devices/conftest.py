"""The native runner, and a small bundle with its samples."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import classifier, edgeq, images
from device_board import Board

from edgeq.bundle import Bundle, read_bundle
from edgeq.devices.programs import find_runner, host_abi
from edgeq.errors import ProviderError


@pytest.fixture(scope="session")
def runner() -> Path:
    """The native runner for this machine."""
    abi = host_abi()
    if abi is None:
        pytest.skip("the native runner runs on Linux on x86-64 and aarch64")
    try:
        return find_runner(abi)
    except ProviderError as error:
        pytest.skip(error.what)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    model, data = classifier(folder / "small.onnx"), images(folder / "data.npy")
    made = folder / "small-android"
    arguments = ("--target", "android", "--calibration", data, "--effort", "0", "--no-measure", "-o", made)
    found = edgeq("export", model, *arguments)
    assert found.code == 0, found.err
    return made


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Bundle:
    """A copy to change."""
    return read_bundle(shutil.copytree(bundle_folder, tmp_path / "small-android"))


@pytest.fixture
def feeds(bundle: Bundle) -> tuple[dict[str, np.ndarray], ...]:
    samples = bundle.manifest.samples
    assert samples is not None
    arrays = {name: np.load(bundle.file(file)) for name, file in samples.inputs.items()}
    return tuple({name: array[i] for name, array in arrays.items()} for i in range(samples.count))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "board")
