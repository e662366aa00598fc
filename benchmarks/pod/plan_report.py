"""Plans as a table for a terminal, and as JSON."""

import argparse
import json
import sys
from typing import Any

import rich.console
from rich.table import Table

from .. import harness
from ..compiled.kept import COMPILERS
from .plan import Plan, plan, plan_mesh
from .search import search

_GB, _MB = 1e9, 1e6


def show(options: argparse.Namespace) -> int:
    """Plans and prints what was found; returns 0 if something fits, else 1."""
    plan_mesh(options)  # an error of the flags comes first
    found = list(search(options, planned)) if options.search else [planned(options)]
    if options.json:
        records = [record(one) for one in found]
        shown = {"plans": records} if options.search else records[0]
        print(json.dumps({"compiled on": compiled_on(), **shown}, indent=2))
    else:
        console = rich.console.Console()
        parts = [searched(found)] if options.search else tables(found[0])
        for part in parts:
            console.print(part)
    return 0 if any(one.fits for one in found) else 1


def planned(options: argparse.Namespace) -> Plan:
    """Plans a step, and tells meanwhile that it is at work."""
    console = rich.console.Console(stderr=True)
    what = f"{options.recipe} of {options.model} for {options.plan}"
    if not console.is_terminal:
        print(f"compiling {what}; this takes minutes", file=sys.stderr, flush=True)
    with console.status(f"compiling {what}"):
        return plan(options)


def record(one: Plan) -> dict[str, Any]:
    """All of it in plain numbers; bytes, seconds, and of one chip."""
    result: dict[str, Any] = {
        "settings": one.settings,
        "fits": one.fits,
        "memory": one.chip.memory,
        "tokens": one.tokens,
        "total": one.total,
        **one.held,
    }
    if one.refusal is not None:
        result |= {"refusal": one.refusal, "largest": dict(one.largest)}
    else:
        result |= {
            "padding": one.padding,
            "temporaries": one.temporaries,
            "flops": one.flops,
            "moved": one.moved,
            "sent": one.sent,
            "links": one.links,
            "bounds": one.bounds,
            "collectives": one.by_kind(),
        }
    return result | {
        "seconds": one.seconds,
        "compiler memory": one.compiler_memory,
    }


def compiled_on() -> dict[str, Any]:
    """The machine and the compilers."""
    versions = {name: harness.version(name) for name in COMPILERS}
    return harness.environment() | versions


def tables(one: Plan) -> list[Any]:
    """What a terminal shows."""
    shown = ", ".join(f"{name} {value}" for name, value in one.settings.items())
    parts: list[Any] = [shown, _memory(one)]
    if one.refusal is not None:
        parts += [f"refused: {one.refusal}", _leaves(one)]
    else:
        parts += [_times(one), _exchanges(one)]
    compiler = f"{one.seconds:.0f} s, {one.compiler_memory / _GB:.1f} GB at most"
    return [*parts, f"compiled in {compiler}, on this machine"]


def searched(found: list[Plan]) -> Table:
    """All plans of a search, the way to compute a batch first."""
    names = "remat", "microbatches", "examples each", "GB", "", "ms", "tokens a s"
    table = Table(*names, box=None, caption="ms at least, tokens at most, of a step")
    for one in found:
        at = one.settings
        each = at["batch_size"] // at["mesh"]["data"] // at["microbatches"]
        several = at["microbatches"] > 1
        row = [at["remat"], "any number" if several else "1", str(each)]
        if one.total is None:
            table.add_row(*row, "more", "refused")
            continue
        least = max(one.bounds.values())
        answer = "fits" if one.fits else "does not fit"
        row += [_number(one.total / _GB), answer]
        # More microbatches share an update: of two neither is a bound for all.
        bound = [_number(1e3 * least), f"{one.tokens / least:.3g}"]
        table.add_row(*row, *([] if several else bound))
    return table


def _memory(one: Plan) -> Table:
    table = Table("memory of a chip", "GB", box=None)
    for name in ("parameters", "state", "batch"):
        table.add_row(name, _number(one.held[name] / _GB))
    if one.total is not None:
        table.add_row("padding of these", _number(one.padding / _GB))
        table.add_row("temporaries", _number(one.temporaries / _GB))
    table.add_row("  gradients, if all at once", _number(one.held["gradients"] / _GB))
    total = "more" if one.total is None else _number(one.total / _GB)
    answer = "fits" if one.fits else "does not fit"
    table.add_row(f"in all, of {one.chip.memory / _GB:.1f}", f"{total}  {answer}")
    return table


def _times(one: Plan) -> Table:
    table = Table("a step takes at least", "ms", "for", box=None)
    chip, bounds = one.chip, one.bounds
    links = f"over {one.links} links of {chip.link / _GB:.4g} a s"
    works = {
        "compute": f"{one.flops / 1e12:.3g} TFLOP at {chip.flops / 1e12:.4g} a s",
        "memory": f"{one.moved / _GB:.3g} GB at {chip.bandwidth / _GB:.4g} a s",
        "links": f"{one.sent / _GB:.3g} GB {links}",
    }
    for name, work in works.items():
        table.add_row(name, _number(1e3 * bounds[name]), work)
    least = max(bounds.values())
    speed = f"{one.tokens / least:.3g} tokens a s at most"
    table.add_row("all at once", _number(1e3 * least), speed)
    return table


def _exchanges(one: Plan) -> Table:
    table = Table("collective", "axes", "runs", "MB a chip", "MB a link", box=None)
    for row in one.by_kind():
        sizes = (_number(row[name] / _MB) for name in ("sent", "sent by link"))
        table.add_row(row["kind"], row["axes"], str(row["runs"]), *sizes)
    return table


def _leaves(one: Plan) -> Table:
    table = Table("largest arguments", "GB", box=None)
    for path, size in one.largest:
        table.add_row(path, _number(size / _GB))
    return table


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
