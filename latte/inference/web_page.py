"""The page of `latte web`, built with Gradio; what it does is in `studio`.

Gradio sends nothing home (its analytics are off), takes no fonts from elsewhere, and listens where it is told.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import: it would ask for the newest version
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr
import numpy as np

from latte.diffusion.solvers import SOLVERS
from latte.errors import UserError
from latte.inference.studio import CancelledError, Facts, Studio, checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latte.config.web import WebConfig

LOCAL = ("127.0.0.1", "localhost", "::1")
QUICK = ("dpmpp_2m", 20)  # solver and steps that the form begins with
WAITING = 8  # samplings in the queue, at most
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def serve(cfg: WebConfig) -> None:
    """Serve the page until Ctrl-C; raises UserError if the address is taken, or the checkpoint cannot be read."""
    page = build(cfg, Studio(cfg.device_target, cfg.dtype, cfg.output_path))
    print(f"http://{cfg.host}:{cfg.port} is the page; Ctrl-C ends it", flush=True)  # noqa: T201  # what the command says
    try:
        page.queue(max_size=WAITING, default_concurrency_limit=1).launch(
            server_name=cfg.host,
            server_port=cfg.port,
            share=False,
            inbrowser=False,
            quiet=True,
            theme=THEME,
            footer_links=[],
            allowed_paths=[str(Path(cfg.output_path).resolve())],
        )
    except OSError as error:
        raise UserError(f"cannot listen at {cfg.host}:{cfg.port}: {error}; choose another --port") from error


def build(cfg: WebConfig, studio: Studio) -> gr.Blocks:
    """Return the page; raises UserError if the checkpoint cannot be read."""
    facts = studio.facts(cfg.checkpoint or "", cfg.vae_checkpoint)
    offered = list(dict.fromkeys([cfg.checkpoint, *checkpoints()]))
    is_local = cfg.host in LOCAL  # whoever reaches the page from elsewhere chooses among what is offered
    with gr.Blocks(title="Latte", analytics_enabled=False) as page:
        with gr.Row():
            with gr.Column():
                checkpoint = gr.Dropdown(
                    offered,
                    value=cfg.checkpoint,
                    label="Checkpoint, run, or folder",
                    allow_custom_value=is_local,
                    elem_id="checkpoint",
                )
                described = gr.Markdown(facts.description, elem_id="described")
                widgets = _widgets(facts)
                vae = gr.Textbox(
                    cfg.vae_checkpoint or "",
                    label="Autoencoder, if the checkpoint does not bring one",
                    interactive=is_local,
                    elem_id="vae",
                )
            with gr.Column():
                with gr.Row():
                    start = gr.Button("Sample", variant="primary", elem_id="start")
                    cancel = gr.Button("Cancel", elem_id="cancel")
                status = gr.Textbox("ready", label="Status", lines=2, elem_id="status")
                preview = gr.Image(
                    label="x_0 as it looks now",
                    type="numpy",
                    height=170,
                    buttons=["fullscreen"],  # not the one that shares at huggingface.co
                    elem_id="preview",
                    interactive=False,
                )
                video = gr.Video(
                    buttons=["download"],
                    label="Video",
                    autoplay=True,
                    loop=True,
                    height=300,
                    elem_id="video",
                    interactive=False,
                )
                command = gr.Textbox(label="The command that makes this video", lines=3, elem_id="command")
                file = gr.File(label="Download", height=90, elem_id="file", interactive=False)
        history = gr.Gallery(
            _gallery(studio),
            label="History",
            columns=8,
            height=200,
            object_fit="contain",
            buttons=[],
            elem_id="history",
        )

        shown = [status, preview, video, file, command, history]
        names = list(widgets)

        def sample(*values: Any) -> Iterator[tuple[Any, ...]]:
            yield from _sample(studio, values[0], values[1], dict(zip(names, values[2:], strict=True)))

        def choose(path: str, autoencoder: str) -> list[Any]:
            try:
                found = studio.facts(path, autoencoder or None)
            except UserError as error:
                return [f"error: {error}", *(gr.skip() for _ in names)]
            settings = _settings(found)
            return [found.description, *(gr.update(**settings.get(name, {})) for name in names)]

        start.click(
            sample, [checkpoint, vae, *widgets.values()], shown, concurrency_id="device", api_visibility="private"
        )
        cancel.click(studio.cancel, queue=False, api_visibility="private")
        gr.on(
            [checkpoint.change, vae.submit],
            choose,
            [checkpoint, vae],
            [described, *widgets.values()],
            concurrency_id="device",
            api_visibility="private",
        )

        def again(event: gr.SelectData) -> tuple[Any, ...]:
            made = studio.history[event.index]
            return (*_file(made.file), made.command)

        history.select(again, None, [video, file, command], queue=False, api_visibility="private")
    return page


def _settings(facts: Facts) -> dict[str, dict[str, Any]]:
    """Return what the fields of the form are like for a checkpoint, by the names of the options."""
    has_text, has_classes = facts.conditioning in ("prompt", "text"), facts.conditioning == "class"
    last = max(facts.num_classes - 1, 1)
    return {
        "prompts": {"visible": has_text},
        "negative_prompt": {"visible": has_text},
        "class_labels": {"visible": has_classes, "maximum": last},
        "guidance_scale": {"visible": has_text or has_classes, "value": facts.guidance},
        "num_frames": {"visible": facts.conditioning != "prompt", "value": facts.frames},
        "image_size": {"visible": facts.conditioning != "prompt", "value": facts.height},
        "height": {"visible": facts.conditioning == "prompt", "value": facts.height},
        "width": {"visible": facts.conditioning == "prompt", "value": facts.width},
    }


def _widgets(facts: Facts) -> dict[str, Any]:
    """Return the fields of the form by the names of their options."""
    own = _settings(facts)
    solver, steps = QUICK
    fields: dict[str, Any] = {
        "prompts": gr.Textbox(label="Prompt", elem_id="prompts", **own["prompts"]),
        "negative_prompt": gr.Textbox(label="Negative prompt", elem_id="negative", **own["negative_prompt"]),
        "class_labels": gr.Slider(0, value=0, step=1, label="Class", elem_id="label", **own["class_labels"]),
    }
    with gr.Row():
        fields["sampler"] = gr.Dropdown(list(SOLVERS), value=solver, label="Solver", elem_id="solver")
        fields["sampling_steps"] = gr.Slider(1, 1000, value=steps, step=1, label="Steps", elem_id="steps")
    with gr.Row():
        fields["seed"] = gr.Number(42, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed")
        fields["guidance_scale"] = gr.Slider(
            1, 20, step=0.1, label="Guidance", elem_id="guidance", **own["guidance_scale"]
        )
    with gr.Row():
        for name, label in (
            ("num_frames", "Frames"),
            ("image_size", "Pixels"),
            ("height", "Height"),
            ("width", "Width"),
        ):
            fields[name] = gr.Number(label=label, precision=0, minimum=1, elem_id=label.lower(), **own[name])
    fields["init_frames"] = gr.File(
        label="First frame: an image or a video", type="filepath", height=120, elem_id="first"
    )
    return fields


def _sample(studio: Studio, checkpoint: str, vae: str, form: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield what the page shows while a video is made: status, preview, video, file, command, history."""
    options = {name: value for name, value in form.items() if value not in (None, "")}
    skip = gr.skip()
    yield "loading", None, None, None, "", skip
    try:
        fields = _settings(studio.facts(checkpoint, vae or None))
        hidden = [name for name, own in fields.items() if not own["visible"]]  # which does not count
        options = {name: value for name, value in options.items() if name not in hidden}
        if "prompts" in options:
            options["prompts"] = [options["prompts"]]
        words = studio.words(checkpoint, vae, options)
        yield skip, skip, skip, skip, studio.command(words), skip
        for event in studio.sample(words):
            if event.file is None:
                picture = skip if event.preview is None else np.concatenate(list(event.preview), axis=1)
                yield f"step {event.step} of {event.steps}", picture, skip, skip, skip, skip
            else:
                yield (event.summary, None, *_file(event.file), skip, _gallery(studio))
    except CancelledError:
        yield "cancelled", skip, skip, skip, skip, skip
    except UserError as error:
        yield f"error: {error}", None, skip, skip, skip, skip


def _file(path: Path) -> tuple[str | None, str]:
    """Return the values of the player and of the download."""
    name = str(path.resolve())
    return (name if path.suffix == ".mp4" else None), name


def _gallery(studio: Studio) -> list[tuple[str, str]]:
    return [(str(made.file.resolve()), made.file.stem) for made in studio.history]
