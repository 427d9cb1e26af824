"""Checks as JUnit XML, for continuous integration: a suite per device, a case per check."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from edgeq.device_report import DeviceCheck, DeviceReport, DeviceResult

__all__ = ["junit_xml"]

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 does not hold, not even escaped; names of devices and messages of runtimes may."""


def junit_xml(report: DeviceReport) -> bytes:
    """UTF-8; a check that is undecided is skipped, with the reason."""
    suites = [_suite(report, result) for result in report.results]
    root = ET.Element("testsuites", {"name": f"edgeq run {_plain(report.name)}", **_totals(suites)})
    root.extend(suites)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _suite(report: DeviceReport, result: DeviceResult) -> ET.Element:
    name = _plain(f"{report.name} on {result.device.spelling}")
    cases = [_case(name, check) for check in result.checks]
    suite = ET.Element("testsuite", {"name": name})
    suite.extend(cases)
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped")}
    suite.attrib.update(
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time="0",
    )
    return suite


def _case(suite: str, check: DeviceCheck) -> ET.Element:
    case = ET.Element("testcase", {"name": _plain(check.name), "classname": suite, "time": "0"})
    tag = {"passed": "system-out", "failed": "failure", "undecided": "skipped", "error": "error"}[check.state]
    said = ET.SubElement(case, tag, {} if tag == "system-out" else {"message": _plain(check.text)})
    if tag != "skipped":
        said.text = _plain(check.text)
    return case


def _totals(suites: Iterable[ET.Element]) -> dict[str, str]:
    found = list(suites)
    return {key: str(sum(int(suite.get(key, "0")) for suite in found)) for key in ("tests", "failures", "errors")}


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
