"""The page: a form of gradio's around a function that answers.

``pip install -e '.[demo]'``. Everything that is filled in goes through :mod:`flamingo.demo.form`
before anything is computed; what comes back is text and images that were drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import Any, NoReturn

import gradio as gr
from fastapi import Depends, HTTPException, Request
from gradio import processing_utils, routes
from PIL import Image

from flamingo.demo.answering import Alternative, Answered, Shown
from flamingo.demo.form import Limits, Row, candidates, demonstrations, query
from flamingo.plots.attention import attention_scale, in_even_spreads, overlay

Ask = Callable[[tuple[Shown, ...], Shown, tuple[str, ...]], Answered]
"""From demonstrations, the query and the candidates (or none) to what came of it."""
SOURCES: list[Any] = ["upload", "clipboard"]
SIDE = 336
"""Pixels of the longer side of a drawn image."""
KEPT_SECONDS = 3600
LOOKED_SECONDS = 60
"""How often gradio looks for files that are older."""
WAITING = 16
"""Questions that may wait while one is answered."""
ASKED_FOR = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.+|/gradio_api/"
    r"(startup-events|app_id|info|upload|upload_progress|queue/join|queue/data|file=.+)"
)
"""What the page asks its server for. gradio serves more: it gives what is posted as a recording to
ffmpeg, keeps what was typed as a link, and so on."""


def build_page(
    title: str,
    ask: Ask,
    seen: Callable[[Image.Image], Image.Image],
    limits: Limits,
) -> gr.Blocks:
    """The page, not yet served. ``seen`` gives an image as the encoder sees it."""
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(LOOKED_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(
            f"# {title}\nShow the model a few images with questions and answers, then ask about "
            "another. Without demonstrations it answers from its training alone."
        )
        with gr.Row():
            with gr.Column(scale=3):
                images, questions, answers = _demonstration_rows(limits)
                image, question, typed = _query(limits)
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=2):
                outputs = _results()

        def respond(*filled: Any) -> tuple[str, dict[str, float], list[tuple[Image.Image, str]]]:
            count = limits.demonstrations
            columns = (filled[i * count : (i + 1) * count] for i in range(3))
            rows = [Row(*row) for row in zip(*columns, strict=True)]
            try:
                asked = query(filled[-3], filled[-2], limits)
                choices = candidates(filled[-1], limits)
                answered = ask(demonstrations(rows, limits), asked, choices)
            except (ValueError, OSError) as error:
                # gradio shows the message as HTML, and has what was typed in it.
                raise gr.Error(escape(str(error)), print_exception=False) from error
            return (
                answered.text or "(nothing)",
                {_named(own): own.probability for own in answered.alternatives},
                gallery(seen(asked.image), answered),
            )

        inputs = [*images, *questions, *answers, image, question, typed]
        for trigger in (button.click, question.submit):
            trigger(respond, inputs, outputs, api_visibility="private")
    return page


def gallery(image: Image.Image, answered: Answered) -> list[tuple[Image.Image, str]]:
    """The mean over layers, then each layer, drawn over ``image``, with what to call them.

    Every picture has a scale of its own, from nothing to its strongest patch.
    """
    layers = in_even_spreads(answered.attention.numpy())
    named = [(layers.mean(axis=0), "mean of layers")]
    for layer, gate, own in zip(answered.layers, answered.gates, layers, strict=True):
        named.append((own, f"layer {layer}, gate {gate:.2f}"))
    return [(overlay(image, own, attention_scale([own]), SIDE), name) for own, name in named]


def _named(alternative: Alternative) -> str:
    """What stands beside the percentage, which is a whole number: below it, the probability too."""
    text = alternative.text or "(nothing)"
    rare = alternative.probability < 0.005
    return f"{text} ({alternative.probability:.1g})" if rare else text


def _demonstration_rows(limits: Limits) -> tuple[list[gr.Image], list[gr.Textbox], list[Any]]:
    """A row a demonstration; each but the first is shown once the one before it has an image."""
    images: list[gr.Image] = []
    questions: list[gr.Textbox] = []
    answers: list[gr.Textbox] = []
    rows: list[gr.Row] = []
    for number in range(1, limits.demonstrations + 1):
        with gr.Row(visible=number == 1, elem_id=f"demonstration-{number}") as row:
            rows.append(row)
            images.append(_upload(f"Demonstration {number}", 150))
            with gr.Column(scale=2):
                questions.append(_text("Question", limits))
                answers.append(_text("Answer", limits))
    for image, row in zip(images, rows[1:], strict=False):
        image.upload(lambda: gr.update(visible=True), None, row, api_visibility="private")
    return images, questions, answers


def _query(limits: Limits) -> tuple[gr.Image, gr.Textbox, gr.Textbox]:
    with gr.Row(elem_id="query"):
        image = _upload("Image to ask about", 220)
        with gr.Column(scale=2):
            question = _text("Question about it", limits)
            typed = gr.Textbox(
                label="Candidates",
                info="Answers to choose from, separated by commas. Empty: any answer.",
            )
    return image, question, typed


def _upload(label: str, height: int) -> gr.Image:
    # A path, and no mode to convert to: gradio then decodes no pixels before the limits do.
    return gr.Image(
        type="filepath",
        image_mode=None,
        sources=SOURCES,
        label=label,
        height=height,
        buttons=[],
        min_width=120,
    )


def _text(label: str, limits: Limits) -> gr.Textbox:
    return gr.Textbox(label=label, max_length=limits.characters)


def _results() -> list[Any]:
    text = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
    label = gr.Label(label="Alternatives", show_heading=False, elem_id="alternatives")
    gr.Markdown(
        "An answer that is not chosen among candidates is decoded as in the run's evaluation; its "
        "alternatives are found by beam search, and one of them can be likelier as a whole."
    )
    gr.Markdown(
        "**Where it looked** in the image, as the encoder sees it, while it said the answer: the "
        "mean of all layers, then before each layer with a gated block. Little is let through a "
        "gate near 0, wherever it looks."
    )
    return [
        text,
        label,
        gr.Gallery(
            show_label=False,
            columns=2,
            object_fit="contain",
            height="auto",
            buttons=["fullscreen", "download"],
            interactive=False,
            format="png",
            elem_id="attention",
        ),
    ]


def serve(page: gr.Blocks, *, host: str, port: int, limits: Limits) -> str:
    """Serve ``page`` in the background, and say where. It ends with the process or ``close()``.

    No public link, no API for programs, no files but uploads and drawn images, nothing sent
    elsewhere or fetched from there. Raises ``ValueError`` for a port that is taken, a host that is
    not ours, or a gradio that we cannot keep from fetching.
    """
    _fetch_nothing()
    page.queue(api_open=False, max_size=WAITING, default_concurrency_limit=1)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=limits.upload_megabytes * 10**6,
            allowed_paths=[],
            blocked_paths=[],
            share=False,
            inbrowser=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            strict_cors=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            app_kwargs={"dependencies": [Depends(_only_what_is_asked_for)]},
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
    except OSError as error:
        raise ValueError(
            f"host, port: expected an address of this machine with a free port, got {host}:{port} "
            "(in use, or not to be had): port=..."
        ) from error
    return url


def _fetch_nothing() -> None:
    """Refuse where gradio fetches an address that a visitor names, of any size, before we see it.

    Raises ``ValueError`` if gradio has no such function: it may then fetch by another.
    """
    for module, name, refuse in (
        (processing_utils, "async_ssrf_protected_download", _refuse_as_upload),
        (routes, "secure_url_stream_response", _refuse_as_file),
    ):
        if not hasattr(module, name):
            raise ValueError(
                f"demo: expected {module.__name__}.{name}, to replace it, got none in gradio "
                f"{gr.__version__}: make install brings one that has it"
            )
        setattr(module, name, refuse)


async def _refuse_as_upload(url: str, cache_dir: str) -> NoReturn:
    raise gr.Error("image: expected an upload, got an address", print_exception=False)


async def _refuse_as_file(url: str, request: Request) -> NoReturn:
    raise HTTPException(403, "file: expected an upload, got an address")


async def _only_what_is_asked_for(request: Request) -> None:
    if not ASKED_FOR.fullmatch(request.scope["path"]):
        raise HTTPException(404)
