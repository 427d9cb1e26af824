"""What a Hugging Face folder says of its model: where it is, its weights, its task, its licence."""

from __future__ import annotations

import os
from pathlib import Path

from edgeq.errors import ExportError
from edgeq.source import Licence
from edgeq.stages.export.preprocessing import read_json
from edgeq.stages.export.requirements import need
from edgeq.stages.export.torch_interface import quiet

__all__ = ["infer_task", "read_licences", "resolve", "weight_files"]

# The Hub's client phones home unless told not to.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_DECODER_TASKS = frozenset({"text-generation", "text2text-generation", "image-to-text", "image-text-to-text"})


def resolve(source: str, *, trust_remote_code: bool, allow_pickle: bool) -> tuple[Path, str]:
    """The folder with the model's files, and its name for the provenance: ``org/name@commit``."""
    path = Path(source)
    if path.is_dir():
        return path, path.resolve().name
    hub = need("huggingface_hub", extra="hf", purpose="a Hugging Face model")
    from huggingface_hub import errors

    patterns = ["*.json", "*.txt", "*.model", "README.md", "*.safetensors"]
    patterns += ["*.bin"] if allow_pickle else []
    patterns += ["*.py"] if trust_remote_code else []
    remedy = "check the id (org/name), or give a local folder"
    try:
        with quiet():
            folder = Path(hub.snapshot_download(source, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except errors.GatedRepoError:
        what, remedy = "the model is gated: its owner asks you to accept terms", "accept them on its page, then log in"
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        what = "no such model on the Hugging Face Hub"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        offline = hub.constants.HF_HUB_OFFLINE
        what = "the model is not in the local cache, and the Hugging Face Hub " + (
            "is not asked, because HF_HUB_OFFLINE is set" if offline else f"cannot be reached ({type(error).__name__})"
        )
        remedy = "go online once, or give a local folder that holds config.json and the weights"
    else:
        return folder, f"{source}@{folder.name}"
    raise ExportError(what, where=source, remedy=remedy)


def weight_files(folder: Path, allow_pickle: bool, where: str) -> list[Path]:
    """The files with the weights: safetensors, or pickles if there is nothing else and they are allowed."""
    safe = sorted(folder.glob("*.safetensors"))
    if safe:
        return safe
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if not pickles:
        raise ExportError(
            "the model has no weights that can be loaded: no safetensors file",
            where=where,
            remedy="the folder must hold model.safetensors",
        )
    if not allow_pickle:
        raise ExportError(
            f"the model's weights come only as pickle files ({', '.join(path.name for path in pickles)}), "
            "which can run code when they are loaded",
            where=where,
            remedy="use a version with safetensors, or allow pickle files if you trust their author",
        )
    return pickles


def infer_task(folder: Path, task: str | None, trust_remote_code: bool, where: str) -> str:
    """The task in optimum's words, given or told from the architecture; refuses what cannot be exported yet."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    config = read_json(folder / "config.json")
    if not config:
        raise ExportError("the model has no config.json", where=where, remedy="give a folder saved by transformers")
    if config.get("auto_map") and not trust_remote_code:
        model_type = config.get("model_type")
        if model_type not in transformers.CONFIG_MAPPING:
            raise ExportError(
                "the model brings Python code of its own, which runs when it is loaded",
                where=where,
                remedy="read that code, and allow remote code if you trust it",
            )
    if task is None:
        names = config.get("architectures") or []
        architecture = getattr(transformers, names[0], None) if names else None
        if architecture is not None:
            try:
                task = TasksManager.infer_task_from_model(architecture)
            except ValueError:
                task = None
        if task is None:
            raise ExportError(
                f"the task cannot be told from the architecture ({', '.join(names) or 'none in config.json'})",
                where=where,
                remedy="name it, for example: --task feature-extraction, text-classification, image-classification",
            )
    task = TasksManager.map_from_synonym(task)
    if task.removesuffix("-with-past") in _DECODER_TASKS or config.get("is_encoder_decoder"):
        raise ExportError(
            f"decoder language models cannot be exported yet: {config.get('model_type', 'this model')} for {task}",
            where=where,
            remedy="use an encoder (feature-extraction, text-classification, ...) or an image model",
        )
    if task not in TasksManager.get_all_tasks():
        raise ExportError(
            f"unknown task {task!r}", where=where, remedy=f"one of: {', '.join(sorted(TasksManager.get_all_tasks()))}"
        )
    return str(task)


def read_licences(folder: Path) -> tuple[Licence, ...]:
    """The licence in the front matter of the model card."""
    card = folder / "README.md"
    if not card.is_file():
        return ()
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return ()
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if line.startswith("license:"):
            return (Licence("weights", line.partition(":")[2].strip().strip("'\""), "model card (README.md)"),)
    return ()
