"""The page itself, built with Gradio: what is on it, and which of a visitor's acts goes where."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from mask2former.result import Thresholds
from mask2former.utils.image_io import EXTENSIONS
from mask2former.web.view import Json
from mask2former.web.visits import Visits

FOLDER = Path(__file__).parent
LEFT_OVER = 60  # seconds after which an upload that nobody read is deleted
PROGRESS = gr.Progress()
SLIDERS = {  # field of `Thresholds` -> the task that it belongs to, label, what it does
    "score": ("instance", "Instances: score", "Those with a lower score are left out."),
    "duplicate_iou": ("instance", "Instances: duplicates", "Of those with a higher IoU, the best stays."),
    "object_mask": (
        "panoptic",
        "Segments: probability",
        "Those with a lower one are left out.",
    ),
    "overlap": ("panoptic", "Segments: overlap", "Each keeps at least this share of its own mask."),
}
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = ".prose code { white-space: pre-wrap; overflow-wrap: anywhere; }"  # names of models may be long
# One after the other: the network and post-processing use all cores
ONE_AT_A_TIME: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}


def build_page(visits: Visits, model_name: str) -> gr.Blocks:
    """Return the page, which is not served yet."""
    with gr.Blocks(title="Mask2Former", analytics_enabled=False, delete_cache=(LEFT_OVER, LEFT_OVER)) as page:
        gr.Markdown(f"## Mask2Former\n`{model_name}`")
        with gr.Row():
            upload = gr.File(label="Drop an image", file_types=["image", *EXTENSIONS], height=150)
            examples = _examples(visits.examples)
        viewer = _viewer(visits)
        with gr.Accordion("Thresholds"), gr.Row():
            sliders = _sliders(visits.predictor.thresholds, visits.predictor.model.tasks)
        _connect(page, visits, upload, examples, sliders, viewer)
    return page.queue()


def _examples(paths: Sequence[Path]) -> gr.Dataset:
    return gr.Dataset(
        components=[gr.Image(visible=False)],
        samples=[[str(path)] for path in paths],
        type="index",
        label="Or an example",
        visible=bool(paths),
    )


def _sliders(values: Thresholds, tasks: Sequence[str]) -> dict[str, gr.Slider]:
    """Return the sliders of the thresholds that matter for some tasks, by their names in `Thresholds`."""
    return {
        name: gr.Slider(0, 1, getattr(values, name), step=0.01, label=label, info=info, min_width=260)
        for name, (task, label, info) in SLIDERS.items()
        if task in tasks
    }


def _viewer(visits: Visits) -> gr.HTML:
    def file(wanted: dict[str, Any]) -> Json:
        return visits.file(wanted)

    html, css, script = (
        (FOLDER / f"viewer.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    return gr.HTML(
        html_template=html,
        css_template=css,
        js_on_load=script,
        apply_default_css=False,
        server_functions=[file],
        min_height=300,
    )


def _connect(
    page: gr.Blocks,
    visits: Visits,
    upload: gr.File,
    examples: gr.Dataset,
    sliders: dict[str, gr.Slider],
    viewer: gr.HTML,
) -> None:
    """Say what happens when."""

    def thresholds(values: Sequence[float]) -> Thresholds:
        return visits.predictor.thresholds._replace(**dict(zip(sliders, values, strict=True)))

    def drop(
        request: gr.Request, file: Any, progress: gr.Progress = PROGRESS, *values: float
    ) -> tuple[None, Json]:
        path = Path(file["path"])  # Gradio has checked that it is in the folder of uploads
        try:
            name = file.get("orig_name") or path.name
            answer = visits.open_image(request.session_hash, path, name, thresholds(values), progress)
        finally:
            path.unlink(missing_ok=True)  # it is kept nowhere
            with suppress(OSError):  # the same file may be on its way from another visitor
                path.parent.rmdir()
        return None, answer

    def pick(request: gr.Request, number: int, progress: gr.Progress = PROGRESS, *values: float) -> Json:
        path = visits.examples[number]
        return visits.open_image(request.session_hash, path, path.name, thresholds(values), progress)

    def start(request: gr.Request, progress: gr.Progress = PROGRESS, *values: float) -> Json:
        return pick(request, 0, progress, *values)

    def redraw(request: gr.Request, *values: float) -> Json:
        return visits.redraw(request.session_hash, thresholds(values))

    def hide(request: gr.Request, event: gr.EventData) -> Json:
        return visits.hide(request.session_hash, event.hidden)

    def leave(request: gr.Request) -> None:
        visits.sessions.drop(request.session_hash)

    values = list(sliders.values())
    quietly: dict[str, Any] = {**ONE_AT_A_TIME, "trigger_mode": "always_last", "show_progress": "hidden"}
    # Without Gradio's preprocessing, `drop` gets the path and the visitor's name for it
    uploads: dict[str, Any] = {**ONE_AT_A_TIME, "preprocess": False, "show_progress_on": viewer}
    upload.upload(drop, [upload, *values], [upload, viewer], **uploads)
    examples.click(pick, [examples, *values], viewer, **ONE_AT_A_TIME)
    if visits.examples:
        page.load(start, values, viewer, **ONE_AT_A_TIME)
    for slider in values:
        slider.change(redraw, values, viewer, **quietly)
    viewer.toggle(hide, None, viewer, **quietly)
    page.unload(leave)
