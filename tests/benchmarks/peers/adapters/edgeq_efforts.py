"""edgeq at one effort: W8A8 for x86 processors, 4-bit weights for an NPU that has them."""

from __future__ import annotations

import sys

from common import Task, main

TARGETS = {"w8a8": "linux-x64", "w4a8": "android-npu", "w4a16": "android-npu"}


def quantize(task: Task, effort: int) -> None:
    from edgeq.graph import save_model
    from edgeq.pipeline import Job
    from edgeq.request import Data

    # With evaluation data given nothing is held out for it: all samples calibrate, as for every tool here.
    feeds = task.feeds()
    data = Data(calibration=feeds, evaluation=feeds)
    job = Job(task.model, TARGETS[task.precision], data=data, precision=task.precision, effort=effort)
    _, plan, model = job.quantize(job.schemes[0])
    save_model(model, task.output)
    trials = getattr(plan, "trials", ())
    print(f"{sum(trial.kept for trial in trials)} of {len(trials)} trials kept", file=sys.stderr)


main({str(effort): lambda task, effort=effort: quantize(task, effort) for effort in (0, 1, 2)})  # type: ignore[misc]
