"""The parity report: a table for the terminal, one self-contained HTML page, and JSON."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from parity_tests.result import FEATURES, RUNGS, Figure, Report, Row, Sound
from parivox.atomic import write_text
from parivox.errors import ConfigError

PIPE_WIDTH = 100
"""Columns of the table where the output is not a terminal."""

COLUMNS: tuple[tuple[str, str], ...] = (
    ("Case", "What was computed, and by which backend."),
    ("Compared with", "The other backend, an independent evaluation, or a recorded result."),
    ("Arithmetic", "The number format. In float64 two equal algorithms agree to many digits, so any larger "
     "error is a fault. In float32 both lose digits, and neither may lose many more than the original did."),
    ("Error", "The distance found. Relative to the size of the numbers, unless the case says otherwise."),
    ("Bound", "The largest distance that passes. “equal” asks for the same bits."),
    ("Margin", "Bound divided by error: how many times over the comparison passes. “exact”: no difference."),
    ("Verdict", "PASS where the error lies inside the bound, FAIL everywhere else."),
)  # fmt: skip
"""Heading and meaning of each column of the page's table."""


def summary(report: Report) -> str:
    """One sentence: how many comparisons passed, failed, and did not run."""
    count = len(report.rows)
    if not count:
        sentence = "nothing was compared"
    elif report.failures:
        sentence = f"{len(report.failures)} of {count} comparisons lie outside their bounds"
    else:
        sentence = f"all {count} comparisons lie inside their bounds"
    return sentence + (f"; {len(report.skipped)} skipped" if report.skipped else "")


def print_table(report: Report, console: Any = None) -> None:
    """Print the ladder as a table, what was skipped, the failures in full, and a total line.

    Args:
        report: what the ladder found.
        console: a `rich.console.Console`; None prints to the standard output. One that is no terminal
            is widened to `PIPE_WIDTH` columns, so that a table in a log file is not folded up.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    if report.rows:
        console.print(_table(report.rows))
    for skipped in report.skipped:
        console.print(Text.assemble(("skipped ", "yellow"), f"{skipped.rung}: {skipped.reason}"))
    for row in report.failures:
        line = f"{row.rung}, {row.case} against {row.against}: {_number(row.error)}, bound {_bound(row)}"
        console.print(Text.assemble(("FAIL ", "bold red"), line + (f" ({row.note})" if row.note else "")))
    verdict = ("PASS", "bold green") if report.passed else ("FAIL", "bold red")
    console.print(Text.assemble(verdict, f": {summary(report)}"))


def write_json(report: Report, path: Path) -> None:
    """Write the rows, what was skipped and the machine as JSON, whole or not at all.

    A number that is NaN or infinite is written as the word, since JSON has no such numbers.

    Raises:
        ConfigError: the file cannot be written.
    """
    rows = [asdict(row) | {"margin": row.margin, "passed": row.passed} for row in report.rows]
    content = {
        "passed": report.passed,
        "summary": summary(report),
        "machine": report.machine,
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }
    _write(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_html(report: Report, path: Path) -> None:
    """Write the report as one page that needs no other file and no network, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    _write(path, render_html(report))


def render_html(report: Report) -> str:
    """The page as text. Everything that comes from the report is escaped."""
    word = "PASS" if report.passed else "FAIL"
    parts = [
        f'<header><h1>Parivox parity report</h1><p class="verdict {word.lower()}"><strong>{word}</strong> '
        f"{escape(summary(report))}</p>",
        "<p>Parivox has two backends, JAX and PyTorch with DeepSpeed. This page shows, number by number, how "
        "far apart they are and how far each is from an independent reference, on one machine.</p></header>",
        _section("The ladder", _ladder(report.rows)),
        _section("What a DeepSpeed config asks for, in JAX", _features(report.rows)),
        _section("Skipped", _skipped(report)),
        _section("How to read the table", _legend()),
        _section("Pictures", "".join(_figure(figure) for figure in report.figures)),
        _section("Sounds", _sounds(report.sounds)),
        _section("Machine", _machine(report.machine)),
        f"<footer><p>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by Parivox.</p></footer>",
    ]
    return _PAGE.format(title=f"Parivox parity: {word}", style=_STYLE, body="\n".join(filter(None, parts)))


def _table(rows: list[Row]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("rung", "case", "compared with"):
        table.add_column(heading, overflow="fold")
    table.add_column("dtype", no_wrap=True)
    for heading in ("error", "bound", "margin"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for rung, group in groupby(rows, key=lambda row: row.rung):
        for index, row in enumerate(group):
            verdict = Text("pass", "green") if row.passed else Text("FAIL", "bold red")
            names = (Text(rung if index == 0 else "", "cyan"), Text(row.case), Text(row.against))
            table.add_row(*names, row.dtype, _number(row.error), _bound(row), _margin(row), verdict)
        table.add_section()
    return table


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _bound(row: Row) -> str:
    return "equal" if row.bound == 0 else _number(row.bound)


def _margin(row: Row) -> str:
    if row.error == 0:
        return "exact"
    if not math.isfinite(row.margin):
        return "-"
    return f"{row.margin:,.0f}x" if row.margin >= 10 else f"{row.margin:.2g}x"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot write the report '{path}': {reason}; name another file") from error


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def _ladder(rows: list[Row]) -> str:
    if not rows:
        return "<p>Nothing was compared.</p>"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in COLUMNS)
    bodies = []
    for rung, group in groupby(rows, key=lambda row: row.rung):
        meaning = f" <span>{escape(RUNGS[rung])}</span>" if rung in RUNGS else ""
        title = f'<tr><th colspan="{len(COLUMNS)}" scope="rowgroup">{escape(rung)}{meaning}</th></tr>'
        bodies.append(f"<tbody>{title}\n{''.join(_row(row) for row in group)}</tbody>")
    table = f'<table class="ladder"><thead><tr>{head}</tr></thead>\n{"".join(bodies)}</table>'
    return f'<div class="wide">{table}</div>'


def _row(row: Row) -> str:
    verdict = "pass" if row.passed else "fail"
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    numbers = "".join(f"<td>{escape(text)}</td>" for text in (_number(row.error), _bound(row), _margin(row)))
    return (
        f'<tr class="{verdict}"><td>{escape(row.case)}{note}</td><td>{escape(row.against)}</td>'
        f"<td>{escape(row.dtype)}</td>{numbers}<td><strong>{verdict.upper()}</strong></td></tr>\n"
    )


def _features(rows: list[Row]) -> str:
    """Each entry of a DeepSpeed config, what does the same in JAX, and the row that came nearest to its bound."""
    lines = []
    for feature, meaning in FEATURES.items():
        about = [row for row in rows if row.feature == feature and not re.search(r"\btorch\b", row.case)]
        if not about:
            continue
        worst = min(about, key=lambda row: (row.passed, row.margin))
        verdict = "pass" if worst.passed else "fail"
        measured = f"<small>{len(about)} comparisons; the nearest to its bound: {escape(worst.case)}</small>"
        numbers = "".join(
            f"<td>{text}</td>" for text in (_number(worst.error), _bound(worst), _margin(worst))
        )
        lines.append(
            f'<tr class="{verdict}"><td><strong>{escape(feature)}</strong>{measured}</td><td>{escape(meaning)}</td>'
            f"<td>{escape(worst.against)}</td>{numbers}<td><strong>{verdict.upper()}</strong></td></tr>\n"
        )
    names = ("DeepSpeed", "JAX", "Compared with", "Error", "Bound", "Margin", "Verdict")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f'<table class="ladder"><thead><tr>{head}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="wide">{table}</div>' if lines else ""


def _skipped(report: Report) -> str:
    items = (f"<li><strong>{escape(s.rung)}</strong>: {escape(s.reason)}</li>" for s in report.skipped)
    return f"<ul>{''.join(items)}</ul>" if report.skipped else ""


def _legend() -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in COLUMNS)
    return f"<dl>{items}</dl>"


def _figure(figure: Figure) -> str:
    title, source = escape(figure.title), _data_url(figure.png, "image/png")
    caption = f"<strong>{title}.</strong> {escape(figure.caption)}"
    return f'<figure><img alt="{title}" src="{source}"><figcaption>{caption}</figcaption></figure>\n'


def _sounds(sounds: list[Sound]) -> str:
    return "".join(
        f'<figure class="sound"><figcaption>{escape(sound.title)}</figcaption>'
        f'<audio controls preload="none" src="{_data_url(sound.data, sound.media_type)}"></audio></figure>\n'
        for sound in sounds
    )


def _machine(machine: dict[str, str]) -> str:
    rows = (
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in machine.items()
    )
    return f'<table class="machine"><tbody>{"".join(rows)}</tbody></table>' if machine else ""


def _data_url(data: bytes, media_type: str) -> str:
    return f"data:{escape(media_type)};base64,{base64.b64encode(data).decode('ascii')}"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { --text: #1b1f24; --soft: #59636e; --page: #ffffff; --panel: #f4f6f8; --line: #d5dae0;
  --pass: #0a6b38; --pass-back: #e3f5ea; --fail: #b3151d; --fail-back: #fde7e8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --soft: #9aa5b1; --page: #14171b; --panel: #1d2127; --line: #353c45;
    --pass: #5fd38d; --pass-back: #12301f; --fail: #ff8a8a; --fail-back: #3d1517; } }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 68rem; color: var(--text);
  background: var(--page); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.8rem; }
h2 { margin: 2.2rem 0 0.6rem; font-size: 1.25rem; }
.verdict { padding: 0.7rem 1rem; border-radius: 0.4rem; border-left: 0.4rem solid; font-size: 1.1rem; }
.verdict.pass { color: var(--pass); background: var(--pass-back); }
.verdict.fail { color: var(--fail); background: var(--fail-back); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; }
td, th { padding: 0.35rem 0.7rem 0.35rem 0; text-align: left; vertical-align: top; }
.ladder { width: 100%; }
.ladder thead th { border-bottom: 2px solid var(--line); }
.ladder tbody th { padding: 0.9rem 0.6rem 0.4rem; background: var(--panel);
  border-top: 1px solid var(--line); }
.ladder tbody th span { display: block; color: var(--soft); font-weight: normal; }
.ladder td { border-top: 1px solid var(--line); }
.ladder td:first-child, .ladder thead th:first-child { padding-left: 0.6rem; }
.ladder td:nth-child(n+4):nth-child(-n+6), .ladder thead th:nth-child(n+4):nth-child(-n+6) {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ladder td:last-child, .ladder thead th:last-child { padding-left: 0.8rem; }
.ladder tr.pass strong { color: var(--pass); }
.ladder tr.fail td { background: var(--fail-back); }
.ladder tr.fail strong { color: var(--fail); }
small { display: block; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.4rem 1.2rem; }
dt { font-weight: 600; }
dd { margin: 0; }
figure { margin: 0 0 1.8rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 0.3rem; }
figcaption { margin-top: 0.4rem; color: var(--soft); }
.sound { display: flex; flex-wrap: wrap; align-items: center; gap: 0.4rem 1rem; margin-bottom: 0.7rem; }
.sound figcaption { min-width: 16rem; margin: 0; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: 0.9rem; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: 0.5rem; } }
"""
