"""The table of plans of docs/tpu.md: `make plan`, or `python -m benchmarks.plan [--only PROGRAM] [--topology NAME]`.

Each cell is a compilation of minutes to hours, so the results are kept after each, and a cell that is there with the
same versions is not compiled again. A cell that no one has compiled is said to be so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parivox.backend import Precision
from parivox.cli import parse
from parivox.errors import BackendError
from parivox.plan import make_plan
from parivox.plan_text import audio_seconds, size, step_seconds

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "plan.json", ROOT / "docs" / "tpu.md"
BEGIN, END = "<!-- made by make plan: begin -->", "<!-- made by make plan: end -->"

PROGRAMS = ("denoise", "enhance", "train denoiser", "train enhancer-stage1", "train enhancer-stage2")
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:4x4", "v5p:2x2x1")
PRECISIONS: tuple[Precision, ...] = ("highest", "tf32", "bf16")
STAGES = (0, 1, 2, 3)


def cells() -> list[tuple[str, str, int | None, Precision]]:
    """(program, topology, stage of ZeRO or None, precision) of the whole table; cleaning works on one chip."""
    found: list[tuple[str, str, int | None, Precision]] = []
    for program, name, precision in itertools.product(PROGRAMS, TOPOLOGIES, PRECISIONS):
        stages = STAGES if program.startswith("train ") else (None,)
        found += [(program, name, stage, precision) for stage in stages]
    return found


def compile_cell(program: str, name: str, stage: int | None, precision: Precision) -> dict[str, Any]:
    """One cell: what the plan says, and what follows from it."""
    words = ["plan", *program.split(), "--topology", name, "--precision", precision]
    request = parse([*words, *([] if stage is None else ["--zero-stage", str(stage)])]).request()
    plan = make_plan(request)
    took = step_seconds(request, plan)
    cell = {
        "program": program,
        "topology": name,
        "stage": stage,
        "precision": precision,
        "seconds_a_step": took,
    }
    speed = None if took is None else audio_seconds(request) / took
    faults = {"float64": len(plan.float64), "host": len(plan.host)}
    return {**cell, "audio_seconds_a_second": speed, **plan.to_dict(), **faults}


def table(found: list[dict[str, Any]]) -> list[str]:
    """Markdown of the cells that are there, and how many are not."""
    lines = [
        "| program | topology | stage | precision | peak of a chip | TFLOP a step | estimate of a step |"
        " sound a second | exchanged | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        took, speed = one["seconds_a_step"], one["audio_seconds_a_second"]
        peak = size(one["memory"]["peak"]) if one["fits"] else f"does not fit: {size(one['needed'] or 0)}"
        kinds = ", ".join(f"{kind} {size(total)}" for kind, (_, total) in one["collectives"].items())
        lines.append(
            f"| {one['program']} | {one['topology']} | {'' if one['stage'] is None else one['stage']} |"
            f" {one['precision']} | {peak} | {one['flops'] / 1e12:,.3g} |"
            f" {'' if took is None else f'{took * 1e3:,.4g} ms'} |"
            f" {'' if speed is None else f'{speed:,.4g} s'} | {kinds} | {one['compile_seconds']:,.0f} s |"
        )
    every = len(cells())
    return [*lines, "", f"{len(found)} of {every} cells have been compiled; the others have not been tried."]


def write_page(found: list[dict[str, Any]], page: Path = PAGE) -> None:
    """Put the table into the page, between its marks."""
    text = page.read_text(encoding="utf-8")
    made = "\n".join([BEGIN, *table(found), END])
    page.write_text(
        re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: made, text, flags=re.DOTALL),
        encoding="utf-8",
    )


def main() -> None:
    """Compile what is missing, and write results and page after each cell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PROGRAMS, help="this program alone")
    parser.add_argument("--topology", choices=TOPOLOGIES, help="this topology alone")
    parser.add_argument("--precision", choices=PRECISIONS, help="this precision alone")
    parser.add_argument("--stage", type=int, choices=STAGES, help="this stage of ZeRO alone")
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    now = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    known = {_key(one): one for one in kept if one["versions"] == now}
    for cell in cells():
        wished = zip((given.only, given.topology, given.stage, given.precision), cell, strict=True)
        if cell in known or any(wish not in (None, own) for wish, own in wished):
            continue
        print(*cell, flush=True)
        try:
            known[cell] = compile_cell(*cell)
        except BackendError as error:
            print(f"  {error}", flush=True)
            continue
        found = [known[one] for one in cells() if one in known]
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_page(found)


def _key(one: dict[str, Any]) -> tuple[Any, ...]:
    return one["program"], one["topology"], one["stage"], one["precision"]


if __name__ == "__main__":
    main()
