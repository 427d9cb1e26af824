"""Compile a finished model ahead of time for named chips: EPContext models, which load without compiling.

``model.onnx`` stays beside them: a context is for one chip and one version of the compiler, and every
other device compiles the model while loading it. The compiler runs in a process of its own for each
file, as it may end its process; and only what a fresh process compiles has the same bytes every time
(measured, onnxruntime-qnn 2.7.0).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgeq.bundle import Context
from edgeq.errors import ConfigError, ProviderError
from edgeq.metrics import sqnr_db
from edgeq.report import bounded_db
from edgeq.sandbox import Task, find_sandbox
from edgeq.target import Chip, Provider, TargetProfile

__all__ = ["LEAST_DB", "compile_contexts", "find_chips"]

LEAST_DB = 25.0
"""Least closeness of a context to the model compiled while loading: the same integers, up to single steps of 8 bits."""

_TIMEOUT_S = 900


def find_chips(asked: str, target: TargetProfile) -> tuple[Chip, ...]:
    """The chips that ``asked`` names: ``SM8750``, the provider's own number, or a variant such as ``v79``.

    Names with commas between them go into one file.

    Raises:
        ConfigError: the target has no compile step, or does not know such a chip.
    """
    if target.compile is None:
        raise ConfigError(
            f"nothing is compiled ahead of time for {target.name}, so {asked!r} is no chip of it",
            where="--context",
            remedy="leave out --context, or choose a target that has a [compile] table",
        )
    found = []
    for name in asked.split(","):
        chip = target.compile.find(name)
        if chip is None:
            raise ConfigError(
                f"{target.name} knows no chip {name.strip()!r}; it knows "
                + ", ".join(f"{c.name} ({c.variant})" for c in target.compile.known),
                where="--context",
                remedy="choose one of them, or add yours to compile.known in the target's profile",
            )
        found.append(chip)
    return tuple(dict.fromkeys(found))


def compile_contexts(
    model: Path, target: TargetProfile, asked: Sequence[str], folder: Path, feed: Mapping[str, np.ndarray]
) -> tuple[Context, ...]:
    """One EPContext model per element of ``asked`` in ``folder``, run on ``feed`` where the target's sandbox can.

    Args:
        model: The finished model, with external data beside it if it has any.
        target: Its profile, with a ``[compile]`` table.
        asked: What ``find_chips`` takes; ``"SM8550,SM8750"`` makes one file for both.
        folder: Where the files go; it is created, and left as it was if anything fails.
        feed: One batch by input name.

    Returns:
        Entries for the manifest; their paths are relative to the parent of ``folder``.

    Raises:
        ConfigError: an unknown chip.
        ProviderError: the compiler refuses the model, ends its process, takes no node, or what it wrote
            computes something else than the model that is compiled while loading.
    """
    groups = [find_chips(one, target) for one in dict.fromkeys(asked)]
    with tempfile.TemporaryDirectory(prefix="edgeq-") as scratch:
        made = [_context(model, target, chips, Path(scratch), feed) for chips in groups]
        if made:
            folder.mkdir(parents=True, exist_ok=True)
        for context in made:
            for name in (context.model, *context.data):
                (folder / name).write_bytes((Path(scratch) / name).read_bytes())
    return tuple(
        msgspec.structs.replace(
            context,
            model=f"{folder.name}/{context.model}",
            data=tuple(f"{folder.name}/{name}" for name in context.data),
        )
        for context in made
    )


def _context(
    model: Path, target: TargetProfile, chips: tuple[Chip, ...], folder: Path, feed: Mapping[str, np.ndarray]
) -> Context:
    stem = "-".join(chip.name for chip in chips)
    provider = _provider_for(target, chips)
    _compile(model, provider, folder / f"{stem}.onnx", stem)
    context = _described(folder, stem, chips, provider)
    if len(chips) > 1:
        # No emulator loads a file for several chips; what it holds for each is compiled alone and run.
        for chip in chips:
            with tempfile.TemporaryDirectory(prefix="edgeq-") as alone:
                _context(model, target, (chip,), Path(alone), feed)
        note = "a file for several chips does not load in the emulator: compiled, and run for each chip alone"
        return msgspec.structs.replace(context, note=note)
    if target.verification.sandbox is None:
        return msgspec.structs.replace(context, note="not run here: no emulator of the chip is known")
    return msgspec.structs.replace(context, sqnr_db=_closeness(model, folder / context.model, target, provider, feed))


def _provider_for(target: TargetProfile, chips: tuple[Chip, ...]) -> Provider:
    assert target.compile is not None
    chosen = {target.compile.option: ",".join(chip.value for chip in chips)}
    return msgspec.structs.replace(target.provider, options={**target.provider.options, **chosen})


def _compile(model: Path, provider: Provider, output: Path, stem: str) -> None:
    """Compile in a process of its own, and in the model's folder: its path, as written, goes into names in the file."""
    job = {"model": model.name, "output": str(output.resolve()), "provider": msgspec.to_builtins(provider)}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "edgeq.stages.tune.context"],  # -P: nothing is imported from the folder
            input=msgspec.json.encode(job),
            cwd=model.parent,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refused(stem, provider, f"it took longer than {_TIMEOUT_S} s") from None
    if child.returncode != 0 or not output.is_file():
        words = child.stderr.decode(errors="replace").strip().splitlines()
        died = f"its process ended with {child.returncode}" if child.returncode < 0 else "it gave no reason"
        said = next((line.removeprefix("edgeq: ") for line in reversed(words) if line.startswith("edgeq: ")), died)
        raise _refused(stem, provider, said)


def _refused(stem: str, provider: Provider, why: str) -> ProviderError:
    return ProviderError(
        f"{provider.name} compiled no context for {stem}: {why}",
        where="--context",
        remedy="leave out --context: the package's model.onnx is compiled on the device then",
    )


def _described(folder: Path, stem: str, chips: tuple[Chip, ...], provider: Provider) -> Context:
    """What the compiler wrote. It reports success even where it took no node at all."""
    import onnx

    graph = onnx.load(str(folder / f"{stem}.onnx"), load_external_data=False).graph
    contexts = [{a.name: a for a in node.attribute} for node in graph.node if node.op_type == "EPContext"]
    if not contexts:
        raise _refused(stem, provider, f"it took none of the model's nodes with {provider.options}")
    data = tuple(dict.fromkeys(c["ep_cache_context"].s.decode() for c in contexts if "ep_cache_context" in c))
    for name in data:
        if not re.fullmatch(r"[\w.-]+", name) or not (folder / name).is_file():
            raise _refused(stem, provider, f"its model names the file {name!r}, which it did not write")
    sdk = {c["ep_sdk_version"].s.decode() for c in contexts if "ep_sdk_version" in c}
    return Context(
        model=f"{stem}.onnx",
        data=data,
        chips=tuple(chip.name for chip in chips),
        architectures=tuple(dict.fromkeys(chip.variant for chip in chips)),
        options=dict(provider.options),
        compiler=f"{provider.package} {_version(provider)}, {' and '.join(sorted(sdk))}".rstrip(", "),
        nodes=len(contexts),
        others=len(graph.node) - len(contexts),
    )


def _version(provider: Provider) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(provider.package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _closeness(
    model: Path, context: Path, target: TargetProfile, provider: Provider, feed: Mapping[str, np.ndarray]
) -> float:
    """SQNR of the context's worst output against the model that is compiled while loading, on the same chip."""
    sandbox = find_sandbox(str(target.verification.sandbox))
    tasks = [Task(model, provider, (feed,)), Task(context, provider, (feed,))]
    plain, ahead = sandbox.run(tasks, arguments=target.verification.arguments)
    for outcome, what in ((plain, "the model"), (ahead, "the context")):
        if outcome.status != "ran":
            raise _refused(context.stem, provider, f"{what} does not run in {sandbox.name}: {outcome.reason}")
    found = min(bounded_db(float(sqnr_db(right, ahead.outputs[0][name]))) for name, right in plain.outputs[0].items())
    if found < LEAST_DB:
        raise _refused(
            context.stem,
            provider,
            f"its outputs differ from those of the model compiled while loading ({found:.1f} dB)",
        )
    return round(found, 3)


def _main() -> None:
    import onnxruntime as ort

    from edgeq.runtime import reason, register_plugin, session_options

    job = msgspec.json.decode(sys.stdin.buffer.read())
    provider = msgspec.convert(job["provider"], Provider)
    try:
        options = session_options(threads=1, config=provider.session)
        options.add_provider_for_devices(register_plugin(provider), dict(provider.options))
        ort.ModelCompiler(options, job["model"], embed_compiled_data_into_model=False).compile_to_file(job["output"])
    except Exception as error:  # whatever the compiler raises is its answer
        sys.stderr.write(f"edgeq: {reason(error)}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    _main()
