from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from parity_tests.report import COLUMNS, PIPE_WIDTH, print_table, render_html, summary, write_html, write_json
from parity_tests.result import FEATURES, RUNGS, Figure, Report, Row, Skipped, Sound
from parivox.errors import ConfigError

VOID = {"meta", "img", "br", "hr", "link", "input"}
PNG = b"\x89PNG\r\n\x1a\nnot a real picture"
NASTY = """<script>alert("1")</script> & [bold]'x'[/bold] {0}"""


def a_report(*more: Row) -> Report:
    rows = [
        Row("features", "stft, jax", "float64 oracle", 3.2e-7, 2e-6, "float32"),
        Row("features", NASTY, NASTY, 1e-6, 2e-6, NASTY, NASTY),
        Row("learning rate", "1,000,000 updates", "deepspeed", 0.0, 0.0),
        *more,
    ]
    return Report(
        rows,
        [Skipped("devices", NASTY)],
        [Figure(NASTY, NASTY, PNG)],
        {"torch": "2.13", NASTY: NASTY},
        [Sound(NASTY, b"RIFFdata")],
    )


class Page(HTMLParser):
    """Checks that every element is closed, and collects what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def printed(report: Report, **options) -> str:
    stream = io.StringIO()
    print_table(report, Console(file=stream, **options))
    return stream.getvalue()


@given(error=st.floats(), bound=st.floats(0, allow_infinity=False))
def test_only_errors_inside_the_bound_pass(error, bound):
    row = Row("r", "c", "a", error, bound)
    assert row.passed == (math.isfinite(error) and error >= 0 and not error > bound)
    if row.passed:
        assert row.margin >= 1
    assert Report([row]).passed == row.passed


@pytest.mark.parametrize("error", [math.nan, math.inf, -1e-9, -math.inf])
def test_errors_that_are_no_distance_fail_under_any_bound(error):
    assert not Row("r", "c", "a", error, math.inf).passed


def test_a_report_without_rows_does_not_pass():
    assert not Report().passed
    assert "nothing was compared" in summary(Report())
    assert "FAIL" in printed(Report())
    assert Page(render_html(Report())).text.count("FAIL") >= 1


def test_the_table_names_every_row_and_the_verdict():
    report = a_report()
    report.rows[1] = Row("features", "[bold]mel[/bold]", "librosa", 1e-6, 2e-6)
    text = printed(report)
    words = " ".join(text.split())
    for word in (
        "stft, jax",
        "float64 oracle",
        "3.2e-07",
        "2.0e-06",
        "6.2x",
        "equal",
        "exact",
        "skipped devices:",
    ):
        assert word in words
    assert "PASS: all 3 comparisons lie inside their bounds; 1 skipped" in words
    assert "FAIL" not in text
    assert "[bold]mel[/bold]" in text, "markup from a report is text, not style"


def test_a_failure_is_said_in_full():
    row = Row("training", "100 updates", "torch", math.nan, 1e-4, note="batch 7")
    words = " ".join(printed(a_report(row)).split())
    assert "FAIL training, 100 updates against torch: nan, bound 1.0e-04 (batch 7)" in words
    assert "FAIL: 1 of 4 comparisons lie outside their bounds" in words


def test_a_piped_table_is_wide_enough_and_a_terminal_keeps_its_width():
    row = Row("gradients", "denoiser " * 8, "the other backend " * 4, 1e-9, 1e-7, "float64")
    piped = printed(a_report(row), width=40).splitlines()
    assert 80 < max(map(len, piped)) <= PIPE_WIDTH
    terminal = printed(a_report(row), width=90, force_terminal=True, color_system=None).splitlines()
    assert max(map(len, terminal)) <= 90


def test_the_page_is_whole_escaped_and_needs_nothing_else():
    html = render_html(a_report())
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert {"title", "table", "figure", "audio", "dl"} <= set(page.tags)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 8
    assert len(page.sources) == 2
    assert all(source.startswith("data:") for source in page.sources)
    assert base64.b64decode(page.sources[0].split(",")[1]) == PNG
    assert "://" not in html
    assert RUNGS["features"] in page.text
    assert all(meaning in page.text for _, meaning in COLUMNS)


def test_the_verdict_of_each_row_is_a_word_and_a_colour():
    good, bad = render_html(a_report()), render_html(a_report(Row("outputs", "c", "a", 3.0, 1.0)))
    assert good.count("<strong>PASS</strong>") == 4
    assert good.count("<strong>FAIL</strong>") == 0
    assert bad.count("<strong>FAIL</strong>") == 2
    assert bad.count('<tr class="fail">') == 1
    assert '<p class="verdict fail">' in bad


def test_each_entry_of_a_config_shows_its_worst_row_of_jax():
    sgd = "optimizer: SGD"
    rows = [
        Row("optimizer", "SGD, jax", "the engine", 1e-7, 1e-6, feature=sgd),
        Row("optimizer", "SGD with momentum, jax", "the engine", 9e-7, 1e-6, feature=sgd),
        Row("optimizer", "SGD, torch", "the engine", 9.9e-7, 1e-6, feature=sgd),
    ]
    text = Page(render_html(a_report(*rows))).text
    about = text[text.index("What a DeepSpeed config asks for") : text.index("Skipped")]
    assert sgd in about and FEATURES[sgd] in about
    assert "2 comparisons; the nearest to its bound: SGD with momentum, jax" in about
    assert "9.0e-07" in about and "FAIL" not in about
    assert not any(other in about for other in FEATURES if other != sgd)
    bad = Page(render_html(a_report(*rows, Row("optimizer", "a, jax", "b", math.nan, 1.0, feature=sgd)))).text
    assert "FAIL" in bad[bad.index("What a DeepSpeed config asks for") : bad.index("Skipped")]
    assert "What a DeepSpeed config asks for" not in Page(render_html(a_report())).text


def test_files_are_written_whole(tmp_path):
    report = a_report(Row("training", "c", "a", math.nan, 1e-4), Row("training", "d", "a", math.inf, 1e-4))
    write_html(report, tmp_path / "new" / "report.html")
    write_json(report, tmp_path / "report.json")
    Page((tmp_path / "new" / "report.html").read_text("utf-8"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "report.html", "report.json"]

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    content = json.loads((tmp_path / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert content["passed"] is False
    assert content["rows"][3]["error"] == "nan"
    assert content["rows"][4]["error"] == "inf"
    assert content["rows"][0] == {
        "rung": "features",
        "case": "stft, jax",
        "against": "float64 oracle",
        "error": 3.2e-7,
        "bound": 2e-6,
        "dtype": "float32",
        "note": "",
        "feature": "",
        "margin": 2e-6 / 3.2e-7,
        "passed": True,
    }
    assert content["skipped"] == [{"rung": "devices", "reason": NASTY}]
    assert content["machine"]["torch"] == "2.13"


@pytest.mark.parametrize("write", [write_html, write_json])
def test_a_file_that_cannot_be_written_is_one_clear_line(tmp_path, write):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "report"
    with pytest.raises(ConfigError) as caught:
        write(a_report(), path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
