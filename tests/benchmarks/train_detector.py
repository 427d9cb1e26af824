"""A small detector trained on photographs of nobody: handwritten digits on noisy ground, for benchmarks and trials.

    python tests/benchmarks/train_detector.py FOLDER

Writes ``FOLDER/detector.onnx`` with the head and the metadata of Ultralytics' YOLOv8 (float32, batch of one), and
``FOLDER/calibration`` and ``FOLDER/held_out``: pictures of several sizes with ``annotations.json`` in COCO's form. The
digits are those of ``train_small.py``. No package with a free licence carries a detector with trained weights.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from train_small import HELD_OUT, digits

SIDE = 128
STRIDES = (8, 16)
STEPS = 1600
BATCH = 16
SIZES = ((128, 128), (160, 200), (240, 180), (128, 96), (192, 256))


def scene(
    pictures: np.ndarray, classes: np.ndarray, size: tuple[int, int], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 ``[height, width, 3]`` and its boxes ``[n, 5]``: left, top, right, bottom in pixels, class."""
    from PIL import Image

    height, width = size
    coarse = random.uniform(0, 120, (6, 6, 3)).astype(np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    ground = ground + random.normal(0, 8, ground.shape)
    unit = min(size) / SIDE
    rows: list[list[float]] = []
    for _ in range(random.integers(1, 6)):
        which = int(random.integers(len(pictures)))
        edge = int(random.uniform(22, 60) * unit)
        left, top = int(random.integers(0, width - edge)), int(random.integers(0, height - edge))
        digit = np.asarray(Image.fromarray(pictures[which]).resize((edge, edge), Image.Resampling.BICUBIC)) / 255.0
        ink = np.argwhere(digit > 0.3)
        (y0, x0), (y1, x1) = ink.min(axis=0), ink.max(axis=0) + 1
        box = [left + x0, top + y0, left + x1, top + y1]
        if any(min(box[2], o[2]) - max(box[0], o[0]) > 0 and min(box[3], o[3]) - max(box[1], o[1]) > 0 for o in rows):
            continue
        place = ground[top : top + edge, left : left + edge]
        place += digit[..., None] * (random.uniform(150, 255, 3) - place)
        rows.append([*map(float, box), float(classes[which])])
    return np.clip(ground, 0, 255).astype(np.uint8), np.array(rows, np.float32)


def network() -> Any:
    """Convolutions with SiLU, two scales with a path from coarse to fine, one head for both: YOLO in small."""
    import torch
    from torch import nn

    def unit(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU())

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Sequential(unit(3, 16, 2), unit(16, 32, 2), unit(32, 48, 2), unit(48, 48))
            self.coarse = nn.Sequential(unit(48, 96, 2), unit(96, 96), unit(96, 96))
            self.mix = unit(48 + 96, 64)
            self.heads = nn.ModuleList(nn.Sequential(unit(c, 64), nn.Conv2d(64, 14, 1)) for c in (64, 96))
            for head in self.heads:
                nn.init.constant_(head[1].bias[4:], -4.0)
            cells = [np.mgrid[: SIDE // s, : SIDE // s].reshape(2, -1)[::-1] + 0.5 for s in STRIDES]
            steps = [np.full(cell.shape[1], s) for cell, s in zip(cells, STRIDES, strict=True)]
            self.register_buffer("cells", torch.from_numpy(np.concatenate(cells, axis=1).astype(np.float32)))
            self.register_buffer("steps", torch.from_numpy(np.concatenate(steps).astype(np.float32)))

        def raw(self, x: torch.Tensor) -> torch.Tensor:
            fine = self.fine(x)
            coarse = self.coarse(fine)
            mixed = self.mix(torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0)], 1))
            return torch.cat([head(y).flatten(2) for head, y in zip(self.heads, (mixed, coarse), strict=True)], 2)

        def boxes(self, raw: torch.Tensor) -> torch.Tensor:
            """Centre x, centre y, width, height in pixels."""
            sides = nn.functional.softplus(raw[:, :4]) * self.steps
            middle = self.cells * self.steps
            low, high = middle - sides[:, :2], middle + sides[:, 2:]
            return torch.cat([(low + high) / 2, high - low], 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raw = self.raw(x)
            return torch.cat([self.boxes(raw), raw[:, 4:].sigmoid()], 1)

    return Detector()


def loss_of(model: Any, pictures: Any, truths: list[np.ndarray]) -> Any:
    """Focal loss on classes, 1 - IoU on boxes; a truth belongs to the cells of its middle, of the scale of its size."""
    import torch

    raw = model.raw(pictures)
    found = model.boxes(raw)
    wanted = torch.zeros_like(raw[:, 4:])
    places: list[tuple[int, int]] = []
    boxes: list[np.ndarray] = []
    first = {8: 0, 16: (SIDE // 8) ** 2}
    for index, rows in enumerate(truths):
        for left, top, right, bottom, label in rows:
            stride = 8 if max(right - left, bottom - top) < 28 else 16
            across = SIDE // stride
            column, row = (left + right) / 2 / stride, (top + bottom) / 2 / stride
            for dx in (-0.5, 0.5):
                for dy in (-0.5, 0.5):
                    at = (int(np.clip(row + dy - 0.0, 0, across - 1)), int(np.clip(column + dx, 0, across - 1)))
                    x, y = (at[1] + 0.5) * stride, (at[0] + 0.5) * stride
                    if not (left < x < right and top < y < bottom):
                        continue
                    places.append((index, first[stride] + at[0] * across + at[1]))
                    boxes.append(np.array([left, top, right, bottom]))
                    wanted[index, int(label), places[-1][1]] = 1
    where = torch.tensor(places).T
    given = found[where[0], :, where[1]]
    truth = torch.from_numpy(np.array(boxes, np.float32))
    low, high = given[:, :2] - given[:, 2:] / 2, given[:, :2] + given[:, 2:] / 2
    sides = (torch.minimum(high, truth[:, 2:]) - torch.maximum(low, truth[:, :2])).clamp(min=0)
    both = sides.prod(1)
    overlap = both / (given[:, 2:].prod(1) + (truth[:, 2:] - truth[:, :2]).prod(1) - both)
    far = ((low - truth[:, :2]).abs() + (high - truth[:, 2:]).abs()).mean() / SIDE
    logits = raw[:, 4:]
    probability = logits.sigmoid()
    weight = torch.where(wanted > 0, 0.5 * (1 - probability) ** 2, 0.5 * probability**2)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return 4 * (weight * cross).sum() / len(places) + (1 - overlap).mean() + far


def train(folder: Path) -> Any:
    """The trained module in evaluation mode."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    pictures, classes = _digits(folder)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    start = time.process_time()
    total = 0.0
    for step in range(STEPS):
        made = [scene(pictures[:-HELD_OUT], classes[:-HELD_OUT], (SIDE, SIDE), random) for _ in range(BATCH)]
        batch = torch.from_numpy(np.stack([picture for picture, _ in made]).transpose(0, 3, 1, 2) / np.float32(255))
        loss = loss_of(model, batch.float(), [rows for _, rows in made])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        total += float(loss)
        if step % 100 == 99:
            print(f"step {step + 1}: loss {total / 100:.3f}, {time.process_time() - start:.0f} CPU s", flush=True)
            total = 0.0
    return model.eval()


def write_pictures(folder: Path, pictures: np.ndarray, classes: np.ndarray, count: int, seed: int) -> None:
    """PNG files of ``SIZES`` in turn, and what is in them."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    table: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    table["categories"] = [{"id": number + 1, "name": f"digit {number}"} for number in range(10)]
    for index in range(count):
        picture, rows = scene(pictures, classes, SIZES[index % len(SIZES)], random)
        name = f"{index:04}.png"
        Image.fromarray(picture).save(folder / name)
        height, width = picture.shape[:2]
        table["images"].append({"id": index, "file_name": name, "height": height, "width": width})
        for left, top, right, bottom, label in rows.tolist():
            box = [left, top, right - left, bottom - top]
            entry = {"id": len(table["annotations"]) + 1, "image_id": index, "category_id": int(label) + 1, "bbox": box}
            table["annotations"].append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    (folder / "annotations.json").write_text(json.dumps(table), encoding="utf-8")


def make(folder: Path) -> Path:
    """``FOLDER/detector.onnx`` and the pictures, made if they are not there yet."""
    path = folder / "detector.onnx"
    pictures, classes = _digits(folder)
    if not (folder / "held_out").exists():
        write_pictures(folder / "calibration", pictures[:-HELD_OUT], classes[:-HELD_OUT], 100, seed=1)
        write_pictures(folder / "held_out", pictures[-HELD_OUT:], classes[-HELD_OUT:], 200, seed=2)
    if not path.exists():
        import torch

        from edgeq.graph import save_model
        from edgeq.pipeline import Job

        learned = folder / "detector.pt"
        if not learned.exists():
            torch.save(train(folder).state_dict(), learned)
        model = network()
        model.load_state_dict(torch.load(learned, weights_only=True))
        made = Job(model.eval(), "linux-x64", example_inputs=(torch.zeros(1, 3, SIDE, SIDE),)).prepared.model
        names = str({number: f"digit {number}" for number in range(10)})
        facts = {"author": "Ultralytics (not: the same form)", "task": "detect", "names": names}
        made.metadata_props.update({**facts, "imgsz": f"[{SIDE}, {SIDE}]", "stride": "16"})
        save_model(made, path)
    return path


def _digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pictures, classes = digits(folder)
    return ((pictures[:, 0] + 1) * np.float32(127.5)).round().astype(np.uint8), classes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    print(make(parser.parse_args().folder))


if __name__ == "__main__":
    main()
