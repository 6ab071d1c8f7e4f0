"""The tables of `experiments.preflight`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdist.preflight import Program, Report

UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def show(name: str, report: "Report") -> None:
    """Prints what one configuration does on one machine."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    target, chip = report.target, report.target.chip
    console.print(
        f"\n[bold]{name}[/bold] on {target.name}: {len(target.devices)} chips, {report.workers} "
        f"workers{_split(report)}",
        highlight=False,
    )
    table = Table("", *[program.name for program in report.programs])
    for title, cells in _rows(report).items():
        table.add_row(title, *cells)
    console.print(table)
    console.print(
        f"A chip: {amount(chip.memory)}B, {amount(chip.flops)}FLOP/s, memory "
        f"{amount(chip.bandwidth)}B/s, links {amount(chip.inside)}B/s inside and "
        f"{amount(chip.between)}B/s between (--chip.flops and so on change what is assumed)\n"
        f"A step on average: {time(report.step_seconds)} at best, of which "
        f"{report.communication:.1%} is spent sending",
        highlight=False,
    )
    if report.missing:
        remedies = ", or ".join(report.remedies()) or "none that is near"
        console.print(
            f"[bold]Does not fit[/bold]: the {report.largest.name} needs "
            f"{amount(report.largest.memory.total)}B, {amount(report.missing)}B more than a chip "
            f"has. What would, about: {remedies}",
            highlight=False,
        )


def show_all(found: Sequence[tuple[str, "Report"]]) -> None:
    """Prints a line for each configuration and machine."""
    from rich.console import Console
    from rich.table import Table

    titles = ("memory", "sync sends", "between", "sync", "step on average", "sending", "fits")
    table = Table("", "on", "workers", *titles)
    for name, report in found:
        of = {program.name: program for program in report.programs}
        sync = of.get("sync", of.get("local step"))
        assert sync is not None
        table.add_row(
            name,
            report.target.name,
            str(report.workers),
            f"{amount(report.largest.memory.total)}B",
            f"{amount(_sent(sync, False) + _sent(sync, True))}B",
            f"{amount(_sent(sync, True))}B",
            time(report.estimates[sync.name].exposed),
            time(report.step_seconds),
            f"{report.communication:.1%}",
            "no" if report.missing else "yes",
        )
    Console(soft_wrap=True).print(table)


def amount(number: float) -> str:
    """A number with three digits and a prefix."""
    unit, prefix = next((u, p) for u, p in UNITS if abs(number) >= u or u == 1)
    if number >= 1e12:
        unit, prefix = 1e12, "T"
    return f"{number / unit:.3g} {prefix}"


def time(seconds: float) -> str:
    """A time with three digits."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def _rows(report: "Report") -> dict[str, list[str]]:
    programs, estimates, chip = report.programs, report.estimates, report.target.chip
    memory = lambda field: [f"{amount(getattr(p.memory, field))}B" for p in programs]
    of = [estimates[program.name] for program in programs]
    return {
        "compiled in": [f"{program.seconds:.1f} s" for program in programs],
        "parameters": memory("parameters"),
        "optimizer, rule, statistics": memory("states"),
        "batch": memory("batch"),
        "temporaries": memory("temporaries"),
        "code": memory("code"),
        "of the chip's memory": [f"{p.memory.total / chip.memory:.1%}" for p in programs],
        "floating-point operations": [amount(p.flops) for p in programs],
        "of the peak, at most": [f"{e.share_of_peak:.1%}" for e in of],
        "collectives": [_collectives(p) for p in programs],
        "a chip sends inside": [f"{amount(_sent(p, False))}B" for p in programs],
        "a chip sends between": [f"{amount(_sent(p, True))}B" for p in programs],
        "products while it is sent": [_meanwhile(p) for p in programs],
        "computes, at best": [time(max(e.matrix, e.memory)) for e in of],
        "sends, not hidden": [time(e.exposed) for e in of],
    }


def _split(report: "Report") -> str:
    inside, chips = report.chips_per_worker, len(report.target.devices)
    if inside > 1:
        return f", each over {inside} chips"
    return f", {report.workers // chips} on each chip" if report.workers > chips else ""


def _sent(program: "Program", between: bool) -> int:
    from jaxdist.preflight.estimate import sent

    return sent(program.sendings, between)


def _collectives(program: "Program") -> str:
    kinds = [s.collective.kind for s in program.sendings]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _meanwhile(program: "Program") -> str:
    """Of the asynchronous collectives, the matrix products between start and end."""
    counts = [s.overlapped for s in program.sendings if s.overlapped is not None]
    if not counts:
        return "none is asynchronous" if program.sendings else ""
    return f"{min(counts)} to {max(counts)} of {program.products}"
