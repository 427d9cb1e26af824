"""The story: a source and a target in, a proven package out.

Only this package imports stages. ``story`` tells what happens; ``job`` goes from a source to a
quantized model, ``judge`` says what it is worth, ``publish`` puts it on disk and measures it there, and
``embedding`` makes a project for an app build of it.
"""

from edgeq.pipeline.devices import DeviceOptions, EvaluationData, run_on_devices
from edgeq.pipeline.embedding import embed
from edgeq.pipeline.job import Job
from edgeq.pipeline.judge import SOUND_SQNR_DB, Attempt
from edgeq.pipeline.story import export, validate_bundle

__all__ = [
    "SOUND_SQNR_DB",
    "Attempt",
    "DeviceOptions",
    "EvaluationData",
    "Job",
    "embed",
    "export",
    "run_on_devices",
    "validate_bundle",
]
