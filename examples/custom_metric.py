r"""A metric of your own decides what may be lost.

    edgeq export example:efficientnet-lite0 --target android \
        --metric examples/custom_metric.py:sees_what_is_there --max-drop 5

edgeq calls the function twice, with the float model and with the quantized one. ``predict`` runs one
batch: arrays by input name in, arrays by output name out. Return a number, higher being better, in
percent: ``--max-drop`` is compared with the difference of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

import edgeq

PHOTOS = Path(__file__).parents[1] / "calibration" / "photos"
ACCEPTED = {
    "chelsea-1.jpg": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "chelsea-2.jpg": {281, 282, 285},
    "coffee-1.jpg": {504, 967, 968},  # mug, espresso, cup
    "coffee-2.jpg": {504, 967, 968},
}
"""ImageNet class ids that count as right."""

Predict = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def load(path: Path) -> np.ndarray:
    """A picture as EfficientNet-Lite wants it: short side 256, centre 224, ``(pixel - 127) / 128``."""
    with Image.open(path) as picture:
        scale = 256 / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    top, left = (pixels.shape[0] - 224) // 2, (pixels.shape[1] - 224) // 2
    return ((pixels[top : top + 224, left : left + 224] - 127) / 128).transpose(2, 0, 1)[None]


def sees_what_is_there(predict: Predict) -> float:
    """Percentage of the photographs with an accepted class among the best five."""
    hits = 0
    for name, accepted in ACCEPTED.items():
        logits = predict({"inputs": load(PHOTOS / name)})["logits"][0]
        hits += bool(accepted & set(np.argsort(-logits)[:5].tolist()))
    return 100 * hits / len(ACCEPTED)


if __name__ == "__main__":
    result = edgeq.export(
        "example:efficientnet-lite0",
        target="android",
        output="demo-output/custom-metric",
        metric=f"{__file__}:sees_what_is_there",
        max_drop=5,
        overwrite=True,
    )
    metric = result.report.metric(result.report.primary)
    print(f"{metric.name}: {metric.value:.0f} %, float {metric.float_value:.0f} %")
