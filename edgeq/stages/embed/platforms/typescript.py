"""What packages in TypeScript share, for browsers and for React Native: types, names, and the modules of both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from edgeq.bundle import GraphEntry
from edgeq.errors import ConfigError
from edgeq.interface import PixelInput
from edgeq.stages.embed.code import Dialect
from edgeq.stages.embed.meaning import read_meaning
from edgeq.stages.embed.names import TYPESCRIPT, camel, slug
from edgeq.stages.embed.project import ProjectFile, Request
from edgeq.stages.embed.render import render_files
from edgeq.stages.embed.sample_tokens import sample_tokens
from edgeq.stages.embed.texts import read_texts

__all__ = ["TYPES", "TYPESCRIPT_VERSION", "ScriptType", "provider_name", "script_context", "script_files"]

TYPESCRIPT_VERSION = "5.9.3"


class ScriptType(NamedTuple):
    """The array in JavaScript that holds a type, and ONNX Runtime's name of it."""

    array: str
    onnx: str


TYPES = {
    "float32": ScriptType("Float32Array", "float32"),
    "float64": ScriptType("Float64Array", "float64"),
    "float16": ScriptType("Uint16Array", "float16"),
    "int64": ScriptType("BigInt64Array", "int64"),
    "int32": ScriptType("Int32Array", "int32"),
    "int16": ScriptType("Int16Array", "int16"),
    "int8": ScriptType("Int8Array", "int8"),
    "uint8": ScriptType("Uint8Array", "uint8"),
    "bool": ScriptType("Uint8Array", "bool"),
}

_OWN = (
    *("Outputs", "Inputs", "Prediction", "Detection", "Seen", "LoadOptions", "Picture"),
    *("ort", "Tokenizer", "Tensor", "Session", "BoxAgreement"),
)
_LOCALS = ("feeds", "found", "shape", "result", "session", "labels", "top", "picture", "texts", "options")


def provider_name(entry: GraphEntry, names: Mapping[str, str], package: str, targets: str) -> str:
    """What ``package`` calls a graph's execution provider, one of ``names``.

    Raises:
        ConfigError: it does not have it; ``targets`` are those whose providers it has.
    """
    if entry.provider.name not in names:
        raise ConfigError(
            f"{package} does not have {entry.provider.name}, for which the package was made",
            where=entry.target,
            remedy=f"make a package for {targets}",
        )
    return names[entry.provider.name]


def script_context(request: Request, api: str, types: Mapping[str, ScriptType]) -> dict[str, Any]:
    """What the templates of each such package need, where ``api`` passes tensors of ``types``.

    Raises:
        ConfigError: a type that the API lacks, or a name for the class that is taken.
    """
    manifest, options = request.bundle.manifest, request.options
    meaning, texts = read_meaning(manifest), read_texts(request)
    code = Dialect(TYPESCRIPT, camel, api, types, _LOCALS, length="inputs.{}.length").write(request.signature)
    return {
        "m": manifest,
        "name": TYPESCRIPT.class_name(manifest.name, options.name, _OWN),
        "slug": slug(manifest.name),
        "meaning": meaning,
        "pixels": meaning.picture if isinstance(meaning.picture, PixelInput) else None,
        "wordpiece": texts is not None,
        "texts": texts,
        "labels": manifest.labels,
        "typescript": TYPESCRIPT_VERSION,
        "samples": manifest.samples,
        "agreement": meaning.boxes and meaning.boxes.least_agreement(manifest.main, manifest.samples),
        "tokens": sample_tokens(request.bundle),
        "fence": "`" * 3,
        "inputs": code.inputs,
        "outputs": code.outputs,
        "sizes": code.sizes,
        "ids": code.ids,
    }


def script_files(platform: str, paths: Collection[str], context: Mapping[str, Any]) -> tuple[ProjectFile, ...]:
    """The platform's files from templates of their names, and the modules for pictures, boxes or texts, if needed."""
    own = {path: f"{path.rpartition('/')[2]}.jinja" for path in paths}
    if context["meaning"].picture is not None:
        own["src/pictures.ts"] = "pictures.ts.jinja"
    names = ("wordpiece.ts", "characters.ts") if context["wordpiece"] else ()
    common = {f"src/{name}": f"{name}.jinja" for name in names}
    common |= {"src/agreement.ts": "agreement.ts.jinja"} if context["agreement"] is not None else {}
    common |= {"src/detections.ts": "detections.ts.jinja"} if context["meaning"].boxes is not None else {}
    return (*render_files(platform, own, context), *render_files("typescript", common, context))
