"""What the inputs and outputs of a model mean, as far as its task, preprocessing and graph tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx_ir as ir

from edgeq.graph import TensorInfo, input_infos, output_infos
from edgeq.interface import (
    BoxClassesOutput,
    ClassesOutput,
    ImageInput,
    Input,
    Interface,
    LogitsOutput,
    Output,
    ProbabilitiesOutput,
    TensorInput,
    TokenInput,
)
from edgeq.meanings import output_meaning
from edgeq.recipe import PAD_TOKENS, ImagePreprocess, Preprocess, TextPreprocess

__all__ = ["find_interface"]

_NAMED = (LogitsOutput, ProbabilitiesOutput, ClassesOutput, BoxClassesOutput)

_PARTS: Mapping[str, Literal["ids", "mask", "segments", "positions"]] = {
    "input_ids": "ids",
    "attention_mask": "mask",
    "token_type_ids": "segments",
    "position_ids": "positions",
}


def find_interface(
    model: ir.Model,
    *,
    task: str | None,
    preprocess: Preprocess | None,
    tokenizer: Path | None,
    labels: tuple[str, int] | None,
    known: Interface,
) -> Interface:
    """The interface of a packaged model.

    Args:
        model: The finished model.
        task: Such as ``"image-classification"``.
        preprocess: With the tokenizer's place in the bundle.
        tokenizer: The tokenizer's file, to read.
        labels: The bundle's file with the names of the classes, and how many there are.
        known: Entries that are known already, as edgeq put what they are about into the graph.
    """
    given = {entry.name: entry for entry in known.inputs}
    infos = input_infos(model)
    facts = _tokenizer_facts(tokenizer)
    inputs = [given.get(info.name) or _input(info, len(infos), preprocess, facts) for info in infos]
    mask = next((entry.name for entry in inputs if isinstance(entry, TokenInput) and entry.part == "mask"), None)
    answers = {entry.name: entry for entry in known.outputs}
    outputs = []
    for info, value in zip(output_infos(model), model.graph.outputs, strict=True):
        outputs.append(_labelled(answers.get(info.name), labels) or output_meaning(info, value, task, mask, labels))
    return Interface(inputs=tuple(inputs), outputs=tuple(outputs))


def _labelled(entry: Output | None, labels: tuple[str, int] | None) -> Output | None:
    """With the file that names the classes, if it names as many."""
    if labels is None or not isinstance(entry, _NAMED):
        return entry
    return msgspec.structs.replace(entry, labels=labels[0]) if entry.classes == labels[1] else entry


def _input(info: TensorInfo, count: int, preprocess: Preprocess | None, facts: tuple[str | None, int]) -> Input:
    if isinstance(preprocess, ImagePreprocess) and count == 1 and len(info.shape) == 4:
        return ImageInput(name=info.name, steps=preprocess)
    part = _PARTS.get(info.name)
    if not isinstance(preprocess, TextPreprocess) or part is None:
        return TensorInput(name=info.name)
    fixed = info.shape[1] if len(info.shape) == 2 else None
    return TokenInput(
        name=info.name,
        part=part,
        tokenizer=preprocess.tokenizer,
        algorithm=facts[0],
        max_length=fixed if isinstance(fixed, int) else preprocess.max_length,
        padding="max_length" if isinstance(fixed, int) else preprocess.padding,
        pad_id=facts[1],
    )


def _tokenizer_facts(path: Path | None) -> tuple[str | None, int]:
    """The type of a tokenizer's model and the id of its padding (0 where it has none)."""
    if path is None:
        return None, 0
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, 0  # calibration has told the user already
    table = table if isinstance(table, dict) else {}
    model, padding = _dict(table.get("model")), _dict(table.get("padding"))
    algorithm = model.get("type")
    ids = {**_dict(model.get("vocab")), **_added(table.get("added_tokens"))}
    named = (padding.get("pad_id"), *(ids.get(token) for token in PAD_TOKENS))
    pad_id = next((number for number in named if isinstance(number, int)), 0)
    return algorithm if isinstance(algorithm, str) else None, pad_id


def _added(tokens: Any) -> dict[str, Any]:
    """The ids of added tokens by their text."""
    rows = [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    return {str(token.get("content")): token.get("id") for token in rows}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
