"""Scores as one HTML page with pictures, which needs no other file and no network."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float

from parivox.audio import probe, read_audio, resample
from parivox.evaluate_files import FileScores, Scores
from parivox.evaluate_report import MEAN, heading, number, write_report
from parivox.plots import spectrogram_png, values_png
from parivox.scores import Column

RANKING = ("pesq", "stoi", "si_sdr", "lsd", "dnsmos_ovrl", "mcd", "wer", "speaker")
"""What decides which file is the worst: the first of these that was measured."""

SHOWN_SECONDS = 30.0
"""How much of a file is drawn."""

MEANINGS = {
    "si_sdr": "Energy of the wanted sound over all else, whatever its level; it counts every sample, so a late or "
    "newly made sound has a low one even where it sounds well.",
    "pesq": "What listeners would say, about 1 to 4.64 (ITU-T P.862.2, wide band).",
    "stoi": "How much can be understood, about 0 to 1.",
    "lsd": "How far apart the spectra are, bin by bin, pauses too; 0 for equal ones.",
    "mcd": "How far apart the shapes of the spectra are while there is speech; 0 for equal ones.",
    "dnsmos_ovrl": "A network's guess, without a reference, at what listeners would say of all, 1 to 5.",
    "dnsmos_sig": "The same of the speech.",
    "dnsmos_bak": "The same of what is behind it: high where there is no noise.",
    "dnsmos_p808": "A guess of another network, trained with ITU-T P.808 ratings.",
    "wer": "Words that a recogniser hears otherwise than in the reference. It mishears clean speech too.",
    "speaker": "Cosine of two voice embeddings; 1 for the same voice.",
}
"""Column to what it says, in a sentence."""


def write_page(scores: Scores, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
        AudioError: a file to draw has vanished.
    """
    write_report(path, render_page(scores))


def render_page(scores: Scores) -> str:
    """The page as text; everything that comes from files is escaped."""
    count = len(scores.files)
    title = f"Scores of {count} file{'' if count == 1 else 's'}"
    failed = f", {len(scores.failed)} could not be scored" if scores.failed else ""
    parts = [
        f"<header><h1>{title}{failed}</h1></header>",
        _section("Means", _means(scores)),
        _section("Worst and best", "".join(_examples(scores))),
        _section("Each score", "".join(_pictures(scores))),
        _section("Each file", _table(scores)),
        _section("Notes", _notes(scores)),
        f"<footer><p>Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by Parivox.</p></footer>",
    ]
    return _PAGE.format(title=title, style=_STYLE, body="\n".join(filter(None, parts)))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def _means(scores: Scores) -> str:
    means = scores.means()
    rows = "".join(
        f'<tr><th scope="row">{escape(column.title)}</th><td>{_with_unit(column, means)}</td>'
        f"<td>{len(scores.of(column))}</td><td>{column.better}</td><td>{escape(MEANINGS[column.name])}</td></tr>\n"
        for column in scores.columns
    )
    head = "<tr><th>Score</th><th>Mean</th><th>Files</th><th>Better</th><th>What it says</th></tr>"
    return f'<div class="wide"><table class="means"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _with_unit(column: Column, values: dict[str, float]) -> str:
    return f"{number(column, values) or '-'} {column.unit}".strip()


def ranked(scores: Scores) -> tuple[Column, list[FileScores]] | None:
    """The column that decides, and the files from the worst to the best; None where nothing was measured."""
    columns = {column.name: column for column in scores.columns}
    for name in RANKING:
        if name in columns and (found := scores.of(columns[name])):
            sign = 1 if columns[name].better == "higher" else -1
            return columns[name], [file for file, value in sorted(found, key=lambda item: sign * item[1])]
    return None


def _examples(scores: Scores) -> list[str]:
    found = ranked(scores)
    if found is None:
        return []
    column, files = found
    ends = [("Worst", files[0]), ("Best", files[-1])] if len(files) > 1 else [("The file", files[0])]
    return [
        _figure(
            f"{word} by {column.title}: {file.pair.name}",
            f"{column.title} {_with_unit(column, file.values)}. First channel, at most {SHOWN_SECONDS:g} s.",
            _spectrograms(file),
        )
        for word, file in ends
    ]


def _spectrograms(file: FileScores) -> bytes:
    named = [("reference", file.pair.reference), ("estimate", file.pair.estimate)]
    paths = [(name, path) for name, path in named if path is not None]
    rate = probe(paths[0][1]).rate
    return spectrogram_png([(name, _beginning(path, rate)) for name, path in paths], rate)


def _beginning(path: Path, rate: int) -> Float[np.ndarray, " t"]:
    """The first channel's first seconds, at a rate."""
    wav, own = read_audio(path, frames=max(1, round(SHOWN_SECONDS * probe(path).rate)))
    return resample(wav[0], own, rate)


def _pictures(scores: Scores) -> list[str]:
    pictures = []
    for column in scores.columns:
        found = scores.of(column)
        if found:
            names, values = [file.pair.name for file, _ in found], [value for _, value in found]
            png = values_png(names, values, column.title, heading(column))
            pictures.append(_figure(column.title, f"{MEANINGS[column.name]} Dashed: the mean.", png))
    return pictures


def _table(scores: Scores) -> str:
    head = "".join(f'<th scope="col">{escape(heading(column))}</th>' for column in scores.columns)
    rows = [(file.pair.name, file.values) for file in scores.files]
    body = "".join(_row(name, values, scores) for name, values in rows)
    foot = _row(MEAN, scores.means(), scores)
    return (
        f'<div class="wide"><table class="numbers"><thead><tr><th scope="col">File</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _row(name: str, values: dict[str, float], scores: Scores) -> str:
    cells = "".join(f"<td>{number(column, values)}</td>" for column in scores.columns)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>\n'


def _notes(scores: Scores) -> str:
    lines = [reason for _, reason in scores.failed]
    lines += [f"{file.pair.name}: {note}" for file in scores.files for note in file.notes]
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _figure(title: str, caption: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    text = f"<strong>{escape(title)}.</strong> {escape(caption)}"
    return f'<figure><img alt="{escape(title)}" src="{source}"><figcaption>{text}</figcaption></figure>\n'


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
:root { --text: #1b1f24; --soft: #59636e; --page: #ffffff; --line: #d5dae0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --soft: #9aa5b1; --page: #14171b; --line: #353c45; } }
body { margin: 0 auto; padding: 1.5rem 1.25rem 3rem; max-width: 68rem; color: var(--text);
  background: var(--page); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.8rem; }
h2 { margin: 2.2rem 0 0.6rem; font-size: 1.25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.92rem; }
td, th { padding: 0.35rem 0.9rem 0.35rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); }
tbody td, tbody th { border-top: 1px solid var(--line); font-weight: normal; }
tfoot td, tfoot th { border-top: 2px solid var(--line); font-weight: 600; }
.numbers td, .numbers thead th:nth-child(n+2) { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.means th:first-child, .means td:nth-child(2) { white-space: nowrap; }
figure { margin: 0 0 1.8rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 0.3rem; }
figcaption { margin-top: 0.4rem; color: var(--soft); }
footer { margin-top: 2.5rem; color: var(--soft); font-size: 0.9rem; }
"""
