"""Results for people: tables on stdout."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeq.box_metrics import AGREEMENT

if TYPE_CHECKING:
    from edgeq.doctor import Check
    from edgeq.inspection import Inspection
    from edgeq.qtypes import NodeForecast, QuantPlan, TensorStats, Trial
    from edgeq.report import Finding, GraphReport, Latency, PlanRow, ProviderCheck, Report
    from edgeq.target import TargetProfile

__all__ = [
    "result_console",
    "result_table",
    "show_checks",
    "show_inspection",
    "show_plan",
    "show_report",
    "show_statistics",
    "show_target",
    "show_targets",
]


def result_console() -> Console:
    """Where results go: stdout, in lines of a width that suits it."""
    # A pipe gets lines as wide as they need to be; a terminal its own width.
    width = None if sys.stdout.isatty() else max(160, shutil.get_terminal_size((160, 24)).columns)
    return Console(width=width, soft_wrap=False, highlight=False, emoji=False)  # ssh:x: is a host


def result_table(*columns: str, title: str | None = None) -> Table:
    """A plain table, without borders."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_report(report: Report, folder: Path | None) -> None:
    """The figures that decide, and where the rest is."""
    console = result_console()
    verdict = "" if report.contract is None else ("  contract met" if report.contract.met else "  contract NOT met")
    console.print(f"[bold]{escape(report.name)}[/] for [bold]{report.target}[/] in {report.precision}{verdict}\n")
    table = result_table("", "quantized", "float", "")
    for metric in report.metrics[:6]:
        value = f"{metric.value:.4g} {metric.unit}".strip()
        reference = "" if metric.float_value is None else f"{metric.float_value:.4g} {metric.unit}".strip()
        mark = "primary; " if metric.name == report.primary else ""
        table.add_row(escape(metric.name), value, reference, escape(f"{mark}{metric.source}"))
    _add_checks(table, report.checks)
    _add_costs(table, report)
    console.print(table)
    kinds = Counter(node.kind for node in report.placement)
    placed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    agreed = "n/a" if report.agreement is None else f"{100 * report.agreement:.1f} % run as the profile predicts"
    console.print(f"\nnodes: {placed or 'n/a'}; {agreed}" if placed else "\nnodes: n/a")
    if report.node_times:
        from edgeq.cli.render_nodes import add_times

        add_times(console, report.node_times, report.float_node_times)
    if report.fallback is not None:
        _show_fallback(console, report.fallback)
    if report.front is not None:
        from edgeq.cli.render_front import add_front

        add_front(console, report.front)
    _show_findings(console, report.findings)
    if report.fallback is not None:
        _show_findings(console, report.fallback.findings, of="fallback: ")
    notes = (*report.notes, *(report.fallback.notes if report.fallback is not None else ()))
    for note in notes:
        console.print(escape(f"note: {note}"))
    if folder is not None:
        console.print(escape(f"\nbundle: {folder}\nreport: {folder / 'report.html'}"))


def _show_findings(console: Console, findings: Sequence[Finding], of: str = "") -> None:
    for finding in findings:
        nodes = f" ({', '.join(finding.nodes[:3])}{', ...' if len(finding.nodes) > 3 else ''})" if finding.nodes else ""
        console.print(escape(f"{finding.severity}: {of}{finding.text}{nodes}"))
        if finding.remedy:
            console.print(escape(f"  remedy: {finding.remedy}"))


def _add_checks(table: Table, checks: Sequence[ProviderCheck]) -> None:
    """One line of what became of the package on its provider: how close it came there, and the rest in words."""
    for check in checks:
        ratios = [metric.value for metric in check.metrics if f"SQNR on {check.place}" in metric.name]
        boxes = [metric.value for metric in check.metrics if metric.name.startswith(f"{AGREEMENT} on")]
        value = f"SQNR {min(ratios):.4g} dB" if ratios else f"{boxes[0]:.4g} % of boxes" if boxes else check.status
        said = [check.text, *([check.version] if check.version else []), *([check.remedy] if check.remedy else [])]
        table.add_row(escape(f"on {check.place or check.provider}"), value, "", escape("; ".join(said)))


def _show_fallback(console: Console, graph: GraphReport) -> None:
    """The second graph, with the same columns."""
    console.print(f"\nfallback for [bold]{escape(graph.target)}[/] in {graph.precision} ({graph.provider})")
    table = result_table("", "quantized", "float", "")
    for metric in graph.metrics[:4]:
        reference = "" if metric.float_value is None else f"{metric.float_value:.4g} {metric.unit}".strip()
        value = f"{metric.value:.4g} {metric.unit}".strip()
        table.add_row(escape(metric.name), value, reference, escape(metric.source))
    _add_checks(table, graph.checks)
    if graph.size is not None:
        sizes = (graph.size.quantized_bytes, graph.size.float_bytes)
        table.add_row("size", *map(_size, sizes), f"{graph.size.ratio:.2f} times smaller")
    console.print(table)
    console.print(f"nodes: {', '.join(f'{count} {kind}' for kind, count in graph.kinds.items()) or 'n/a'}\n")


def _add_costs(table: Table, report: Report) -> None:
    if report.size is not None:
        sizes = (report.size.quantized_bytes, report.size.float_bytes)
        table.add_row("size", *map(_size, sizes), f"{report.size.ratio:.2f} times smaller")
    if report.latency is not None:
        ours, theirs = report.latency.quantized, report.latency.float_model
        note = f"p50, {ours.threads} thread{'s' * (ours.threads != 1)}, {escape(report.machine.cpu)}"
        if report.latency.cpu_speedup is not None:
            note += f"; {_in_words(report.latency.cpu_speedup)} by CPU time"
        table.add_row("latency", _ms(ours), _ms(theirs), note)
    else:
        table.add_row("latency", "n/a", "n/a", "not measured")
    if report.memory is not None:
        peaks = (report.memory, report.float_memory)
        table.add_row("memory", *("n/a" if m is None else f"{m.peak_mb:.0f} MB" for m in peaks), "peak of a process")


def _in_words(speedup: float) -> str:
    return f"{speedup:.2f} times faster" if speedup >= 1 else f"{1 / speedup:.2f} times slower"


def _ms(latency: Latency | None) -> str:
    return "n/a" if latency is None else f"{latency.p50_ms:.2f} ms"


def show_plan(
    plan: QuantPlan, rows: Sequence[PlanRow], nodes: Sequence[NodeForecast], provider: str, *, everything: bool
) -> None:
    """Decisions, then what stays float and why."""
    console = result_console()
    console.print(f"plan: {plan.scheme.name} on {plan.target}\n")
    table = result_table("tensor", "as", "granularity", "scale", "range", "rule")
    shown = [r for r in rows if r.skip_reason is None and (everything or r.role == "activation")]
    for row in shown:
        span = "" if row.lo is None or row.hi is None else f"{row.lo:.4g} .. {row.hi:.4g}"
        cells = (row.tensor, f"{row.role} {row.dtype}", row.granularity or "", row.scale or "", span, row.rule)
        table.add_row(*map(escape, cells))
    console.print(table)
    hidden = Counter(row.role for row in rows if row.skip_reason is None and row not in shown)
    if hidden:
        console.print(f"and {', '.join(f'{n} of role {role}' for role, n in hidden.items())} (--all shows them)")
    _show_trials(console, plan.trials, everything=everything)
    for note in plan.notes:
        console.print(escape(f"note: {note}"))
    skipped = [row for row in rows if row.skip_reason is not None]
    for row in skipped:
        console.print(escape(f"skipped: {row.role} {row.tensor}: {row.skip_reason}"))
    _show_nodes(console, nodes, provider)


def _show_trials(console: Console, trials: Sequence[Trial], *, everything: bool) -> None:
    """How many changes were tried and kept, and what became of the whole; each of those kept where all is asked for."""
    if not trials:
        return
    kept = [trial for trial in trials if trial.kept]
    hint = "" if everything or not kept else " (--all shows them)"
    console.print(f"\ntrials: {len(trials)} changes tried block by block, {len(kept)} kept{hint}")
    if kept and everything:
        table = result_table("block", "kept", "SQNR before", "after")
        for trial in kept:
            cells = (f"{db:.1f} dB" if db is not None else "n/a" for db in (trial.before_db, trial.after_db))
            table.add_row(escape(trial.block), escape(trial.method), *cells)
        console.print(table)


def _show_nodes(console: Console, nodes: Sequence[NodeForecast], own: str) -> None:
    """How many nodes run as what and where, and the reason of each that runs in float or off the provider."""
    kinds = Counter((node.kind, node.provider) for node in nodes)
    counts = (f"{count} {kind}{'' if where == own else ' on the CPU'}" for (kind, where), count in kinds.most_common())
    console.print(f"\nnodes on {own}: {', '.join(counts)}")
    floats = result_table("not in integers", "on", "nodes", "why")
    told = [node for node in nodes if node.kind == "float" or node.provider != own]
    reasons = Counter((node.op_type, node.provider, node.why) for node in told)
    for (op_type, where, why), count in reasons.most_common(40):
        floats.add_row(op_type, where.removesuffix("ExecutionProvider"), str(count), escape(why))
    if len(reasons) > 40:
        floats.add_row("...", "", str(sum(n for _, n in reasons.most_common()[40:])), "see --json for the rest")
    if reasons:
        console.print(floats)


def show_inspection(found: Inspection) -> None:
    """A model's summary."""
    console = result_console()
    console.print(f"[bold]{escape(found.name)}[/], opset {found.opset}, task {found.task or 'unknown'}")
    for key, value in found.origin.items():
        console.print(escape(f"  {key}: {value}"))
    console.print(escape("\n".join(["inputs:", *(f"  {i}" for i in found.inputs)])))
    console.print(escape("\n".join(["outputs:", *(f"  {o}" for o in found.outputs)])))
    console.print(f"parameters: {found.parameters:,} ({_size(found.weight_bytes)})")
    console.print("operators: " + ", ".join(f"{n} {op}" for op, n in found.operators.items()))
    before, after = sum(found.source_operators.values()), sum(found.operators.values())
    console.print(f"nodes: {before} as exported, {after} after folding")
    if found.target:
        console.print(f"\non {found.target} in {found.precision}:")
        _show_nodes(console, found.forecast, str(found.provider))


def _size(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:.2f} kB"


def show_statistics(stats: Mapping[str, TensorStats], cache: Path | None) -> None:
    """Extrema of every observed tensor."""
    console = result_console()
    table = result_table("tensor", "lowest", "highest", "values")
    for name, seen in stats.items():
        table.add_row(escape(name), f"{seen.lo:.5g}", f"{seen.hi:.5g}", f"{seen.values:,}")
    console.print(table)
    if cache is not None:
        console.print(escape(f"kept in {cache}"))


def show_targets(profiles: Sequence[TargetProfile]) -> None:
    """One line per target."""
    table = result_table("target", "precisions", "what it is")
    for profile in profiles:
        table.add_row(profile.name, ", ".join(profile.precisions), escape(profile.summary))
    result_console().print(table)


def show_target(profile: TargetProfile) -> None:
    """Everything a profile says, limit by limit."""
    console = result_console()
    console.print(f"[bold]{profile.name}[/]: {escape(profile.summary)}\n")
    provider = profile.provider
    facts: dict[str, Any] = {
        "provider": f"{provider.name} ({provider.package}{provider.version}, {provider.registration})",
        "options": ", ".join(f"{k}={v}" for k, v in {**provider.options, **provider.session}.items()) or "none",
        "precisions": ", ".join(profile.precisions),
        "graph": f"opset {profile.graph.opset}, IR {profile.graph.ir_version}, {profile.graph.shapes} shapes",
        "activations": ", ".join(profile.activations.types.values()),
        "weights": ", ".join(profile.weights.types.values()),
        "bias": profile.bias.mode,
        "absorbs": ", ".join(profile.absorbs) or "nothing",
        "verified": f"accuracy by the {profile.verification.accuracy}; latency on "
        f"{' or '.join(profile.verification.machines) or 'no machine'}; {profile.verification.note}",
    }
    for key, value in facts.items():
        console.print(escape(f"{key}: {value}"))
    table = result_table("operators", "kind", "activations", "weights", "source", title="\ncapabilities")
    for capability in profile.capability:
        table.add_row(
            escape(", ".join(capability.ops)),
            capability.kind,
            ", ".join(map(str, capability.activation_bits)) or "float",
            ", ".join(map(str, capability.weight_bits)) or "-",
            escape(capability.source),
        )
    console.print(table)
    for fixed in profile.fixed:
        console.print(escape(f"fixed: {fixed.op} in [{fixed.lo:g}, {fixed.hi:g}): {fixed.source}"))
    for source in profile.sources:
        console.print(escape(f"source: {source}"))


def show_checks(checks: Sequence[Check]) -> None:
    """One line per check."""
    styles = {"ok": "green", "absent": "yellow", "unusable": "dim", "broken": "red"}
    table = result_table("", "what", "found", "remedy")
    for check in checks:
        state = f"[{styles[check.state]}]{check.state}[/]"
        table.add_row(state, check.name, escape(check.found), escape(check.remedy or ""))
    result_console().print(table)
