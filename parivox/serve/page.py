"""The page itself, laid out with Gradio: input, options, and a row for each sound.

Gradio looks at the annotations of the handlers, so this file does without `from __future__ import annotations`.
"""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, get_args

from parivox.backend import Solver
from parivox.cleaner import Cleaner
from parivox.errors import AudioError
from parivox.hparams import EnhancerHParams
from parivox.hub import is_hub_name
from parivox.sampling import MAX_NFE
from parivox.serve.jobs import SUFFIXES, Knobs, Task, clean_recording, knobs, sentence
from parivox.serve.limits import Limits, check_recording
from parivox.serve.sessions import Job, Sessions
from parivox.serve.view import look_at, row_html

CSS = Path(__file__).with_name("style.css")
TITLES: dict[Task, str] = {"denoise": "Denoised", "enhance": "Enhanced"}
COLOURS = "Brighter is louder; black lies 80 dB below the loudest point of this recording."
FORMATS = [("as the recording", ""), ("WAV", "wav"), ("FLAC", "flac"), ("Ogg Vorbis", "ogg"), ("MP3", "mp3")]


def theme() -> Any:
    """Gradio's plain theme with the fonts that the visitor's system has; the default one fetches others."""
    from gradio.themes import Base

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return Base(
        primary_hue="sky",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        radius_size="lg",
    )


@contextmanager
def in_words() -> Iterator[None]:
    """What the user can mend is shown as its one line; for the rest a plain sentence, and the log has the traceback."""
    import gradio as gr

    try:
        yield
    except Exception as error:
        raise gr.Error(escape(sentence(error)), duration=None, print_exception=False) from error


class Parts(NamedTuple):
    """The components that a job writes to."""

    status: Any
    stop: Any
    before: Any
    denoised: Any
    denoised_file: Any
    enhanced: Any
    enhanced_file: Any


def build(cleaner: Cleaner, limits: Limits, sessions: Sessions) -> Any:
    """The page as `gradio.Blocks`, not served yet.

    Args:
        cleaner: the model; one that is a denoiser has no controls of the enhancer.
        limits: of recordings and of the queue.
        sessions: keep what the page makes.
    """
    import gradio as gr

    with gr.Blocks(title="Parivox", analytics_enabled=False) as page:
        gr.HTML(_head(cleaner), padding=False)
        recording = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Recording",
            buttons=[],
            elem_id="recording",
        )
        _refuse_addresses(recording)
        controls = _controls(cleaner)
        with gr.Row():
            start = gr.Button("Clean", variant="primary", elem_id="clean")
            stop = gr.Button("Stop", visible=False, elem_id="stop")
        parts = _parts(limits, stop)
        gr.HTML(
            '<p class="pv-foot">Everything is removed from the server when you close this page.</p>',
            padding=False,
        )
        received, stopped, ended = _small_handlers(limits, sessions)
        hidden: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        recording.change(received, recording, parts.status, show_progress="hidden", **hidden)
        job = start.click(
            _cleaning(cleaner, limits, sessions, parts),
            [recording, *controls],
            list(parts),
            api_name="clean",
            show_progress_on=parts.status,
        )
        job.then(lambda: gr.Button(visible=False), None, stop, show_progress="hidden", **hidden)
        stop.click(stopped, None, parts.status, show_progress="hidden", **hidden)
        page.unload(ended)
    page.queue(max_size=limits.queue, default_concurrency_limit=1)
    return page


def _head(cleaner: Cleaner) -> str:
    name = cleaner.name if is_hub_name(cleaner.name) else Path(cleaner.name).name
    model = str(cleaner).replace(cleaner.name, name, 1)  # the server's folders are nobody's business
    does = "takes noise out of speech"
    if isinstance(cleaner.hp, EnhancerHParams):
        does += ", or makes the speech anew, clear and full-band"
    return (
        f'<div class="pv-head"><h1>Parivox</h1><p>Drop or record a voice: Parivox {does}. Listen, look and'
        f' download.</p><p class="pv-model">{escape(model)}</p></div>'
    )


def _controls(cleaner: Cleaner) -> list[Any]:
    """The task and the knobs, in the order of the handler's arguments; the enhancer's are hidden where unused."""
    import gradio as gr

    hp = cleaner.hp
    enhances = isinstance(hp, EnhancerHParams)
    nfe, solver = (
        (hp.cfm_solver_nfe, hp.cfm_solver_method) if isinstance(hp, EnhancerHParams) else (1, "euler")
    )
    tasks = [("Enhance: make the speech anew", "enhance"), ("Denoise: only take noise away", "denoise")]
    first = "enhance" if enhances else "denoise"
    task = gr.Radio(tasks, value=first, show_label=False, container=False, visible=enhances, elem_id="task")
    with gr.Accordion("Options", open=False, elem_id="options"):
        with gr.Group(visible=enhances) as flow:
            steps = gr.Slider(
                1, MAX_NFE, nfe, step=1, label="Evaluations (nfe)", info="More take longer and sound finer."
            )
            solvers = gr.Dropdown(list(get_args(Solver)), value=solver, label="Solver")
            lambd = gr.Slider(
                0,
                1,
                1,
                step=0.05,
                label="Denoise first (lambd)",
                info="How much it listens to the denoised sound.",
            )
            tau = gr.Slider(
                0, 1, 0.5, step=0.05, label="Freedom (tau)", info="Share of noise that it begins with."
            )
            seed = gr.Number(
                0, precision=0, minimum=0, label="Seed", info="The same seed gives the same sound."
            )
        mix = gr.Slider(
            0, 1, 0, step=0.05, label="Mix", info="How much of the original is kept in the result."
        )
        mono = gr.Checkbox(False, label="Mono: clean the mean of the channels")
        form = gr.Dropdown(FORMATS, value="", label="Format of the result")
    task.change(
        lambda name: gr.Group(visible=name == "enhance"),
        task,
        flow,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return [task, steps, solvers, lambd, tau, seed, mono, mix, form]


def _parts(limits: Limits, stop: Any) -> Parts:
    import gradio as gr

    status = gr.HTML(_words(f"{limits}."), elem_id="status", padding=False)
    before = gr.HTML(visible=False, elem_id="before", padding=False)
    made = []
    for name in SUFFIXES.values():
        made.append(gr.HTML(visible=False, elem_id=name, padding=False))
        made.append(gr.DownloadButton(visible=False, elem_id=f"download-{name}"))
    return Parts(status, stop, before, *made)


def _words(text: str, role: str = "status") -> str:
    return f'<p role="{role}">{escape(text)}</p>'


def _small_handlers(limits: Limits, sessions: Sessions) -> tuple[Callable[..., Any], ...]:
    """For an upload, the button "Stop" and the end of a session."""
    import gradio as gr

    def received(recording: str | None, request: gr.Request) -> str:
        try:
            name = session_of(request)
            if recording is None:
                sessions.clear(name)
                return _words(f"{limits}.")
            check_recording(sessions.keep(name, Path(recording)), limits)
            return _words("Ready to clean.")
        except Exception as error:  # beside the recording, for as long as that is there
            return _words(sentence(error), role="alert")

    def stopped(request: gr.Request) -> str:
        running = sessions.stop(session_of(request))
        return _words("Stopping after the chunk at work ..." if running else "Nothing is running.")

    def ended(request: gr.Request) -> None:
        sessions.end(session_of(request))

    return received, stopped, ended


def session_of(request: Any) -> str:
    """The name of a browser session; a program that calls without one shares that of all such."""
    return request.session_hash or ""


def _cleaning(cleaner: Cleaner, limits: Limits, sessions: Sessions, parts: Parts) -> Callable[..., Any]:
    """The handler of the button "Clean"."""
    import gradio as gr

    def run(
        recording: str | None,
        task: str,
        nfe: float,
        solver: Solver,
        lambd: float,
        tau: float,
        seed: float | None,
        mono: bool,
        mix: float,
        format: str,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008 (how Gradio finds it)
    ) -> Iterator[dict[Any, Any]]:
        with in_words():
            if recording is None:
                raise AudioError("There is no recording yet; drop a file above, or record one.")
            name = session_of(request)
            source = sessions.keep(name, Path(recording))
            check_recording(source, limits)
            chosen = knobs(nfe, solver, lambd, tau, seed, mono, mix, format or None)
            tasks: tuple[Task, ...] = ("denoise", "enhance") if task == "enhance" else ("denoise",)
            with sessions.job(name) as job:
                yield from _rows(cleaner, tasks, source, chosen, job, parts, _reporter(progress, job))

    return run


def _reporter(progress: Any, job: Job) -> Callable[[float, str], None]:
    """Shows progress from whatever thread; ends a job that was stopped."""
    context = contextvars.copy_context()  # Gradio knows by it whose progress this is

    def report(share: float, words: str) -> None:
        job.check()
        context.copy().run(progress, share, desc=words)

    return report


def _rows(
    cleaner: Cleaner,
    tasks: tuple[Task, ...],
    source: Path,
    chosen: Knobs,
    job: Job,
    parts: Parts,
    report: Callable[[float, str], None],
) -> Iterator[dict[Any, Any]]:
    """Updates of the page: the recording at once, and each result when it is there."""
    import gradio as gr

    before = look_at(source)
    hidden = {part: gr.update(visible=False) for part in parts[3:]}
    first = gr.update(value=row_html("Before", before, before, [COLOURS]), visible=True)
    yield {**hidden, parts.before: first, parts.stop: gr.update(visible=True)}
    for number, task in enumerate(tasks):
        path, remarks = clean_recording(cleaner, task, source, job.folder, chosen, report)
        row, button = parts[3 + 2 * number : 5 + 2 * number]
        label = f"Download {TITLES[task].lower()} ({path.suffix[1:].upper()})"
        html = row_html(TITLES[task], look_at(path), before, remarks)
        done = task == tasks[-1]
        yield {
            row: gr.update(value=html, visible=True),
            button: gr.update(value=str(path), label=label, visible=True),
            parts.status: _words("Done." if done else "Denoised; the enhanced sound follows."),
        }


def _refuse_addresses(recording: Any) -> None:
    """Take uploads alone: Gradio would also fetch a file from an address that a program names."""
    import gradio as gr

    move = recording.async_move_resource_to_block_cache

    async def uploads_only(path: Any) -> Any:
        if path is not None and "://" in str(path):
            raise gr.Error("Send the recording itself; addresses are not fetched.", print_exception=False)
        return await move(path)

    recording.async_move_resource_to_block_cache = uploads_only
