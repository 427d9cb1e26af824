"""A torch module of your own, from training to a checked package for a phone.

    python examples/own_torch_model.py

It draws circles, squares and triangles, trains a small network on them for a few seconds, packages it
with at most one percentage point of lost agreement, and asks the package what it sees.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import edgeq

SIDE = 32
NAMES = ("circle", "square", "triangle")


def draw(kind: int, rng: np.random.Generator) -> np.ndarray:
    """One noisy picture as float32 ``[3, 32, 32]``, roughly in [-1, 1]."""
    foreground, background = (tuple(rng.integers(0, 256, 3)) for _ in range(2))
    picture = Image.new("RGB", (SIDE, SIDE), background)
    x, y, radius = rng.integers(11, 21), rng.integers(11, 21), rng.integers(6, 11)
    pen = ImageDraw.Draw(picture)
    if kind == 0:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=foreground)
    elif kind == 1:
        pen.rectangle((x - radius, y - radius, x + radius, y + radius), fill=foreground)
    else:
        pen.polygon(((x, y - radius), (x - radius, y + radius), (x + radius, y + radius)), fill=foreground)
    pixels = np.asarray(picture, np.float32) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return ((pixels - 127) / 128).astype(np.float32).transpose(2, 0, 1)


def make_pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[count, 3, 32, 32]`` and their classes."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, len(NAMES), count)
    return torch.from_numpy(np.stack([draw(kind, rng) for kind in kinds])), torch.from_numpy(kinds)


def train(epochs: int, pictures: torch.Tensor, kinds: torch.Tensor) -> torch.nn.Module:
    """A network of four convolutions, trained with Adam."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inside, outside in ((3, 16), (16, 32), (32, 48), (48, 64)):
        layers += [torch.nn.Conv2d(inside, outside, 3, stride=2, padding=1), torch.nn.BatchNorm2d(outside)]
        layers += [torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(64 * 4, len(NAMES)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(pictures)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(pictures[batch]), kinds[batch]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    """Train, package, try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo-output/shapes"))
    parser.add_argument("--target", default="android")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=3000)
    arguments = parser.parse_args()

    pictures, kinds = make_pictures(arguments.pictures, seed=1)
    model = train(arguments.epochs, pictures, kinds)

    test_pictures, test_kinds = make_pictures(300, seed=2)
    result = edgeq.export(
        model,
        target=arguments.target,
        output=arguments.output,
        overwrite=True,
        task="image-classification",
        example_inputs=pictures[:1],
        calibration=pictures[:200].numpy(),  # an array, a list or a DataLoader
        evaluation=test_pictures.numpy(),
        max_drop=2.0,
    )
    report = result.report
    print(f"packaged in {report.precision}: {result.path}")
    print(f"loses {report.drop:.2f} points of {report.primary}, {report.size.ratio:.2f} times smaller than float")

    # What an app does, in Python. edgeq is not needed here.
    import onnxruntime

    session = onnxruntime.InferenceSession(result.bundle.model)
    name = session.get_inputs()[0].name
    logits = [session.run(None, {name: picture[None]})[0][0] for picture in test_pictures.numpy()]
    accuracy = np.mean(np.argmax(logits, axis=1) == test_kinds.numpy())
    with torch.no_grad():
        float_accuracy = (model(test_pictures).argmax(dim=1) == test_kinds).float().mean()
    print(f"right on {100 * accuracy:.1f} % of new pictures; the float model on {100 * float_accuracy:.1f} %")


if __name__ == "__main__":
    main()
