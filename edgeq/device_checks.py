"""What is asked of a bundle on a device, and whether it is met: a limit of latency, and no regression.

A baseline is a device report that was stored before. It says what the same device took then; if the machine has
changed since, or is busier now, that is in the difference, too. Where both bundles are at hand it is better to run
them in turn, which is what a bundle given as the baseline does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeq.comparison import Difference, Measure, compare_with_stored
from edgeq.device_latency import deciding_measure, median_ms
from edgeq.device_report import CheckState, DeviceCheck, DeviceLatency, DeviceReport, DeviceResult
from edgeq.errors import ConfigError, ContractError
from edgeq.report import Finding
from edgeq.verdicts import interval

__all__ = ["REGRESSION", "DeviceLimits", "against_baseline", "read_baseline", "with_checks"]

REGRESSION = "--max-regression"
_RAN, _LATENCY = "runs and gives its outputs", "--max-latency-ms"


@dataclass(frozen=True)
class DeviceLimits:
    """``max_latency_ms`` is about p50; ``max_regression`` (0.05: 5 %) about the time in the baseline.

    ``fail_if_undecided``: a regression that can neither be shown nor be ruled out fails, too. Where a device gives no
    times of its own, as an emulator, neither limit can be judged: the check is an error.
    """

    max_latency_ms: float | None = None
    max_regression: float | None = None
    fail_if_undecided: bool = False

    def check_measured(self, *, latency: bool) -> None:
        """Raises ConfigError for a limit on what is not measured (``latency`` false)."""
        asked = _LATENCY if self.max_latency_ms is not None else REGRESSION if self.max_regression is not None else None
        if asked is not None and not latency:
            raise ConfigError(
                f"{asked} limits the latency, which --no-latency leaves out", remedy="leave out one of the two"
            )


def read_baseline(path: Path) -> DeviceReport:
    """A stored device report.

    Raises:
        ConfigError: there is none, it is not one, or it holds no times.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the baseline ({error.strerror})",
            where=str(path),
            remedy="make one with `edgeq run BUNDLE --device D --save-baseline FILE`",
        ) from None
    report = DeviceReport.from_json(text, where=str(path))
    if not any(result.latency is not None and result.latency.sessions for result in report.results):
        raise ConfigError(
            "the baseline holds no times",
            where=str(path),
            remedy="make it again with --save-baseline, without --no-latency",
        )
    return report


def against_baseline(result: DeviceResult, baseline: DeviceReport) -> DeviceResult:
    """``result`` with its difference to what the baseline holds of this device, or the reason why there is none."""
    if result.latency is None or result.error is not None:
        return result
    stored = [(one, _unlike(result, one)) for one in baseline.results if one.latency is not None]
    alike = [one for one, unlike in stored if not unlike]
    if not alike:
        told = "; ".join(dict.fromkeys(f"{one.device.spelling}: {', '.join(unlike)}" for one, unlike in stored))
        check = DeviceCheck(
            name=REGRESSION, state="error", text=f"the baseline was not measured under these conditions: {told}"
        )
        return msgspec.structs.replace(result, checks=(*result.checks, check))
    before = alike[-1]
    assert before.latency is not None
    found = _difference(result, result.latency, before.latency)
    if before.runtime != result.runtime:
        text = f"the baseline was measured with {before.runtime}, this run with {result.runtime}"
        finding = Finding(severity="warning", text=text, remedy="if that is not what you test, make the baseline again")
        result = msgspec.structs.replace(result, findings=(*result.findings, finding))
    return msgspec.structs.replace(result, regression=found)


def with_checks(result: DeviceResult, limits: DeviceLimits) -> DeviceResult:
    """``result`` with what was asked of it and the exit code that follows: 7 if a limit is not met."""
    if result.error is not None:
        check = DeviceCheck(name=_RAN, state="failed" if result.exit_code == 6 else "error", text=result.error)
        return msgspec.structs.replace(result, checks=(check,))
    checks = [DeviceCheck(name=_RAN, state="passed", text=_metrics(result)), *result.checks]
    if limits.max_latency_ms is not None:
        checks.append(_latency(result, limits.max_latency_ms))
    if limits.max_regression is not None and not any(check.name == REGRESSION for check in checks):
        check = _regression(result, limits.max_regression)
        undecided = check.state == "undecided" and limits.fail_if_undecided
        checks.append(msgspec.structs.replace(check, state="failed") if undecided else check)
    code = ContractError.exit_code if any(check.state == "failed" for check in checks) else 0
    if any(check.state == "error" for check in checks):
        code = ConfigError.exit_code
    return msgspec.structs.replace(result, checks=tuple(checks), exit_code=code)


def _difference(result: DeviceResult, now: DeviceLatency, before: DeviceLatency) -> Difference:
    measures: tuple[Measure, ...] = ("wall", "cpu")
    told: list[Measure] = [m for m in measures if all(median_ms(one.sessions, m) for one in (now, before))]
    measure, _ = deciding_measure(told, threads=result.threads, providers=[result.provider])
    medians = [median_ms(one.sessions, measure) or [] for one in (before, now)]
    return compare_with_stored(medians[0], medians[1], runs=now.runs, measure=measure)


def _unlike(now: DeviceResult, before: DeviceResult) -> list[str]:
    """In words what makes the two incomparable; the bundle and the runtime may differ, they are what is tested."""
    pairs: Sequence[tuple[str, object, object]] = [
        ("model", before.device.model, now.device.model),
        ("SoC", before.device.soc, now.device.soc),
        ("ABI", before.device.abi, now.device.abi),
        ("cores", before.device.cores, now.device.cores),
        ("emulated", before.device.emulated, now.device.emulated),
        ("provider", before.provider, now.provider),
        ("threads", before.threads, now.threads),
        ("core mask", before.core_mask, now.core_mask),
    ]
    return [f"{name} {_word(a)} instead of {_word(b)}" for name, a, b in pairs if a != b]


def _word(value: object) -> str:
    return "n/a" if value is None else str(value)


def _metrics(result: DeviceResult) -> str:
    return ", ".join(f"{metric.name} {metric.value:.4g} {metric.unit}".strip() for metric in result.metrics) or "done"


def _timeless(result: DeviceResult) -> str | None:
    """Why no limit of time can be judged on the device, however long it is measured; None if it can."""
    if result.device.emulated or (result.latency is not None and result.latency.emulated):
        return "emulated times say nothing of the real device: run it in a command of its own, without this limit"
    if result.latency is None:
        return "the device gives no times: run it in a command of its own, without this limit"
    return None


def _latency(result: DeviceResult, limit: float) -> DeviceCheck:
    if why := _timeless(result):
        return DeviceCheck(name=_LATENCY, state="error", text=why)
    assert result.latency is not None
    state: CheckState = "passed" if result.latency.p50_ms <= limit else "failed"
    text = f"p50 is {result.latency.p50_ms:.4g} ms, at most {limit:g} ms asked"
    return DeviceCheck(name=_LATENCY, state=state, text=text)


def _regression(result: DeviceResult, limit: float) -> DeviceCheck:
    found, asked = result.regression, f"at most {100 * limit:g} % longer asked"
    if why := _timeless(result):
        return DeviceCheck(name=REGRESSION, state="error", text=why)
    if found is None:
        return DeviceCheck(name=REGRESSION, state="error", text="there is no time to compare with")
    beyond = found.beyond(limit)
    states: dict[bool | None, CheckState] = {True: "failed", False: "passed", None: "undecided"}
    words = f"{'CPU' if found.measure == 'cpu' else 'wall'} time is {interval(found)} of the baseline's, {asked}"
    if beyond is None:
        words += "; it cannot be told: run more processes (--sessions), or compare both bundles in turn"
    return DeviceCheck(name=REGRESSION, state=states[beyond], text=words)
