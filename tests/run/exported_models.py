"""Small random networks as torch exports them, to hold the prediction of placement against what providers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

__all__ = ["EXPORTED"]

_VIT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


class _First(nn.Module):
    """A transformers model with one tensor in and one out."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        more = {} if mask is None else {"attention_mask": mask}
        return self.inner(**{self.name: x}, **more, return_dict=False)[0]


def _image(name: str, **config: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    inner = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**config))
    return _First(_settled(inner), "pixel_values"), (torch.randn(1, 3, 64, 64),)


def _text(name: str, **config: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    inner = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(vocab_size=300, **config))
    ids, mask = torch.randint(0, 300, (1, 12)), torch.ones(1, 12, dtype=torch.int64)
    mask[:, 9:] = 0
    return _First(inner, "input_ids"), (ids, mask)


def _settled(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def _conv(
    inside: int, outside: int, act: type[nn.Module], stride: int = 1, groups: int = 1, kernel: int = 3
) -> nn.Module:
    layer = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outside), act())


class _Bottleneck(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project, residual."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.expand = _conv(width, 2 * width, act, kernel=1)
        self.depthwise = _conv(2 * width, 2 * width, act, groups=2 * width)
        self.squeeze = nn.Conv2d(2 * width, width // 2, 1)
        self.excite = nn.Conv2d(width // 2, 2 * width, 1)
        self.project = _conv(2 * width, width, nn.Identity, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        s = self.excite(nn.functional.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return x + self.project(y * nn.functional.hardsigmoid(s))


class _Detector(nn.Module):
    """Two scales, joined by Resize and Concat, with a head of boxes and scores each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, nn.SiLU, 2)
        self.down = _conv(16, 32, nn.SiLU, 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.neck = _conv(48, 16, nn.SiLU)
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 10, 1)
        self.small = nn.Conv2d(32, 14, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.stem(x)
        coarse = self.pool(self.down(fine))
        joined = self.neck(torch.cat((nn.functional.interpolate(coarse, scale_factor=2.0), fine), 1))
        large = torch.cat((self.boxes(joined), self.scores(joined)), 1)
        both = torch.cat((large.flatten(2), self.small(coarse).flatten(2)), 2).transpose(1, 2)
        return both[..., :4], both[..., 4:].sigmoid()


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = _conv(3, 16, nn.ReLU), _conv(16, 32, nn.ReLU), _conv(32, 16, nn.LeakyReLU)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(nn.functional.max_pool2d(a, 2))
        return self.out(self.c(torch.cat((a, self.up(b)), 1))).argmax(1)


class _Speech(nn.Module):
    """Convolutions over time, a recurrent layer, a decision per frame."""

    def __init__(self, recurrent: type[nn.Module]) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv1d(20, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, 2, 1), nn.ReLU())
        self.recurrent = recurrent(32, 24, batch_first=True)
        self.head = nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.recurrent(self.front(x).transpose(1, 2))
        return self.head(nn.functional.relu(y)).softmax(-1)


class _Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
        self.channels = nn.Sequential(nn.Linear(32, 128), nn.GELU(approximate="tanh"), nn.Linear(128, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


class _Shuffle(nn.Module):
    """ShuffleNet's unit: split, convolve one half, join, shuffle channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, nn.ReLU, 2)
        self.branch = nn.Sequential(_conv(8, 8, nn.ReLU, kernel=1), _conv(8, 8, nn.Identity, groups=8))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(2):
            left, right = x.chunk(2, 1)
            x = torch.cat((left, self.branch(right)), 1)
            x = x.reshape(1, 2, 8, x.shape[2], x.shape[3]).transpose(1, 2).flatten(1, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def _picture(model: nn.Module) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return _settled(model), (torch.randn(1, 3, 64, 64),)


def _mobilenet() -> nn.Module:
    layers = [_conv(3, 16, nn.Hardswish, 2), _Bottleneck(16, nn.ReLU), _Bottleneck(16, nn.Hardswish)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.Hardswish(), nn.Linear(32, 10)
    )


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}

EXPORTED: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "vit": lambda: _image("ViT", image_size=64, patch_size=16, **_VIT),
    "swin": lambda: _image("Swin", image_size=64, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4),
    "mobilenet-v2": lambda: _image("MobileNetV2", image_size=64, depth_multiplier=0.5),
    "resnet": lambda: _image("ResNet", embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2]),
    "convnext": lambda: _image("ConvNext", hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, image_size=64),
    "bert": lambda: _text("Bert", max_position_embeddings=32, **_SMALL),
    "distilbert": lambda: _text("DistilBert", dim=64, hidden_dim=128, n_layers=2, n_heads=4),
    "mobilenet-v3": lambda: _picture(_mobilenet()),
    "detector": lambda: _picture(_Detector()),
    "unet": lambda: _picture(_UNet()),
    "mixer": lambda: _picture(_Mixer()),
    "shuffle": lambda: _picture(_Shuffle()),
    "speech-gru": lambda: (_Speech(nn.GRU), (torch.randn(1, 20, 30),)),
    "speech-lstm": lambda: (_Speech(nn.LSTM), (torch.randn(1, 20, 30),)),
}
"""Each makes a model and its example inputs; call ``torch.manual_seed`` before."""
