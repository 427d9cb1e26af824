"""A device that runs its jobs in this process: what it measures is real, what it says of itself is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import onnxruntime as ort

from edgeq.device_report import DeviceInfo
from edgeq.devices import Arrays, Job, Outcome
from edgeq.devices.protocol import ModelRun
from edgeq.progress import Progress
from edgeq.stages.run.latency import Timing, take_turns
from edgeq.stages.run.node_timing import profile_nodes

Slow = Callable[[str], float]


def _outputs(session: ort.InferenceSession, feed: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


@dataclass
class PythonDevice:
    """``slow`` stretches the times of a bundle, by its folder's name: 1.05 makes it 5 % slower."""

    spelling: str = "local"
    machine: str = "this machine"
    slow: Slow = lambda folder: 1.0
    runtime: str = "onnxruntime 1.32.0"
    model: str = "Board"
    emulated: bool = False
    error: Exception | None = None
    jobs: list[Job] = field(default_factory=list)

    def missing(self) -> str | None:
        return None

    def describe(self) -> DeviceInfo:
        facts = {"model": self.model, "abi": "linux-x86_64", "cores": 2, "emulated": self.emulated}
        return msgspec.convert({"spelling": self.spelling, "kind": "local", **facts}, DeviceInfo)

    def run(self, job: Job, progress: Progress | None = None) -> Outcome:
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        models = {entry.name: entry.bundle.path / entry.graph.model for entry in job.entries}
        timing = Timing(job.threads, warmup_s=0, min_runs=8, seconds=0)
        runs = []
        with take_turns(models, job.feeds[0], timing=timing) as lanes:
            # One clock for all, so that tests do not depend on how busy the machine is.
            common = next(iter(lanes.values())).wall
            for number, entry in enumerate(job.entries):
                factor = self.slow(entry.bundle.path.name) * (1 + 0.001 * number)
                times = tuple(max(time, 0.01) * factor for time in common)
                model = models[entry.name]
                runs.append(
                    ModelRun(
                        name=entry.name,
                        provider=lanes[entry.name].provider,
                        load_ms=1.0,
                        first_ms=2.0,
                        warmup_runs=3,
                        wall_ms=times if job.measure else (),
                        cpu_ms=tuple(time / 2 for time in times) if job.measure else (),
                        nodes=profile_nodes(model, job.feeds[0], seconds=0) if job.profile else (),
                        outputs=tuple(_outputs(lanes[entry.name].session, feed) for feed in job.feeds),
                    )
                )
        return Outcome(self.describe(), self.runtime, tuple(runs), job.threads)
