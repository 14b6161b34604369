"""
A page on which a MAGE model generates, edits and looks at images.

    python examples/space/app.py --model FOLDER_OR_HUB_NAME

In a Space, the variables MAGE_MODEL and MAGE_CLASSIFIER say which models.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from studio import Studio, StudioError, default_model, enlarge, painted

TITLE = "MAGE: one model that generates images, edits them and sees what is in them"
EDITS = ("Repaint what I paint over", "Extend beyond the edges", "Make a variation")
# For a model that representations lead.
LIKE = "Make another image like it"
# The fonts of the machine: others would have to be fetched from elsewhere.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def shown(images: Iterator[tuple[Image.Image, float]], progress: gr.Progress) -> Iterator[Image.Image]:
    """Images as they come about; what goes wrong becomes a toast."""
    try:
        for image, done in images:
            progress(done, desc="Decoding tokens")
            yield image
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def build_page(studio: Studio) -> gr.Blocks:
    """The page; see the module's docstring."""
    with gr.Blocks(title="MAGE", analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Tab("Generate"):
            _generation(studio)
        with gr.Tab("Edit"):
            _editing(studio)
        with gr.Tab("What does it see?"):
            _looking(studio)
    return page.queue(max_size=20, default_concurrency_limit=1)


def _settings(studio: Studio, prefix: str) -> list[gr.components.Component]:
    """Class, guidance, steps, temperature and seed."""
    names, defaults = studio.class_names, studio.defaults
    with gr.Row():
        label = gr.Dropdown(
            ["any", *names],
            value=names[0] if names else "any",
            label="Class",
            visible=bool(names),
            elem_id=f"{prefix}-class",
        )
        guidance = gr.Slider(0, 8, defaults["guidance"], step=0.1, label="Guidance", visible=studio.can_guide)
    with gr.Row():
        steps = gr.Slider(1, 64, defaults["steps"], step=1, label="Steps", elem_id=f"{prefix}-steps")
        temperature = gr.Slider(0, 15, defaults["temperature"], step=0.1, label="Temperature (more is more varied)")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id=f"{prefix}-seed")
    return [label, guidance, steps, temperature, seed]


def _arguments(label: str, guidance: float, steps: int, temperature: float, seed: int) -> dict[str, Any]:
    return {
        "class_labels": None if label == "any" else label,
        "guidance_scale": guidance,
        "num_inference_steps": int(steps),
        "temperature": temperature,
        "seed": seed,
    }


def _generation(studio: Studio):
    with gr.Row():
        with gr.Column():
            settings = _settings(studio, "generate")
            with gr.Row():
                button = gr.Button("Generate", variant="primary", elem_id="generate")
                again = gr.Button("Another one", elem_id="another")
        picture = gr.Image(label="Its tokens, then the image", format="png", elem_id="generated", interactive=False)

    def generate(*values: Any, progress: gr.Progress = gr.Progress()):  # noqa: B008
        yield from shown(studio.make(**_arguments(*values)), progress)

    button.click(generate, settings, picture, api_name="generate")
    again.click(lambda seed: seed + 1, settings[-1], settings[-1]).then(generate, settings, picture)


def _editing(studio: Studio):
    first = enlarge(studio.examples[0]) if studio.examples else None
    with gr.Row():
        with gr.Column():
            editor = gr.ImageEditor(
                first,
                type="pil",
                image_mode="RGBA",
                label="Paint over an image",
                brush=gr.Brush(default_size=48, colors=["#e11d48"], color_mode="fixed"),
                layers=False,
                transforms=(),
                format="png",
                elem_id="editor",
            )
            if studio.examples:
                gallery = [enlarge(image) for image in studio.examples]
                gr.Examples(gallery, editor, label="Examples", examples_per_page=16)
            what = gr.Radio(
                [*EDITS, LIKE] if studio.is_led else EDITS, value=EDITS[0], show_label=False, elem_id="what"
            )
            padding = gr.Slider(
                1, studio.side, studio.side // 2, step=1, label="Pixels to add around it", visible=False
            )
            strength = gr.Slider(0.05, 1, 0.5, step=0.05, label="Share that is made anew", visible=False)
            settings = _settings(studio, "edit")
            button = gr.Button("Edit", variant="primary", elem_id="edit")
        picture = gr.Image(label="Edited", format="png", elem_id="edited", interactive=False)

    def choose(chosen: str):
        return gr.update(visible=chosen == EDITS[1]), gr.update(visible=chosen == EDITS[2])

    def edit(editor: dict, chosen: str, padding: int, strength: float, *values: Any, progress=gr.Progress()):  # noqa: B008
        try:
            image = studio.read((editor or {}).get("background"))
            change = {
                EDITS[0]: lambda: {"image": image, "mask_image": mask_for(image, editor)},
                EDITS[1]: lambda: {"image": image, "padding": int(padding)},
                EDITS[2]: lambda: {"image": image, "strength": strength},
                LIKE: lambda: {"like": image},
            }[chosen]()
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield from shown(studio.make(**change, **_arguments(*values)), progress)

    what.change(choose, what, [padding, strength])
    button.click(edit, [editor, what, padding, strength, *settings], picture, api_name="edit")


def mask_for(image: Image.Image, editor: dict) -> Image.Image:
    return painted(editor).resize(image.size, Image.Resampling.NEAREST)


def _looking(studio: Studio):
    with gr.Row():
        image = gr.Image(type="pil", label="An image", format="png", elem_id="looked-at")
        with gr.Column():
            label = gr.Label(label="Class", num_top_classes=5, visible=studio.classifier is not None, elem_id="label")
            neighbours = gr.Gallery(
                label="Examples with the nearest features", columns=4, format="png", elem_id="nearest"
            )
    if studio.examples:
        gr.Examples([enlarge(example) for example in studio.examples], image, label="Examples", examples_per_page=16)
    button = gr.Button("Look", variant="primary", elem_id="look")

    def look(image: Image.Image | None):
        try:
            image = studio.read(image)
            return studio.classes(image), studio.neighbours(image)
        except StudioError as error:
            raise gr.Error(str(error), print_exception=False) from error

    button.click(look, image, [label, neighbours], api_name="look")


def examples_of(model: str) -> list[Path]:
    """Images beside the app, as in a Space, or else the gallery of the model's card."""
    beside = sorted((Path(__file__).parent / "examples").glob("*.png"))
    return beside or sorted(Path(model, "pictures").glob("sample-*.png"))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default=default_model(), help="a pipeline's folder or Hub name")
    parser.add_argument("--classifier", default=os.environ.get("MAGE_CLASSIFIER"), help="a classifier's")
    parser.add_argument("--examples", type=Path, help="a folder of images (PNG); by default those of the model's card")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    arguments = parser.parse_args(argv)
    examples = sorted(arguments.examples.glob("*.png")) if arguments.examples else examples_of(arguments.model)
    studio = Studio.load(arguments.model, examples, arguments.classifier)
    build_page(studio).launch(server_port=arguments.port, theme=THEME, show_error=True)


if __name__ == "__main__":
    main()
