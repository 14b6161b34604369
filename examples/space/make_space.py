"""
Writes the files of a Space that shows a model, and pushes them if asked to.

    python -m examples.space.make_space --model_name_or_path org/name --push_to_hub org/space
"""

import argparse
import shutil
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.repocard_data import SpaceCardData

from transformers_mage.hub_folders import explained, fetch_folder

HERE = Path(__file__).parent
CODE = ("app.py", "studio.py")
REQUIREMENTS = "torch>=2.9\ntransformers>=5.17,<6\ndiffusers>=0.42,<0.43\naccelerate\n"


def write_space(folder: Path, model: str, classifier: str | None = None, examples: Path | None = None):
    """
    Writes what a Space's repository holds.

    Args:
        folder (`Path`): where to.
        model, classifier (`str`): names on the Hub of repositories that carry their code.
        examples (`Path`, *optional*): a folder of images; by default the pictures of the model's card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in CODE:
        shutil.copyfile(HERE / name, folder / name)
    (folder / "requirements.txt").write_text(REQUIREMENTS)
    (folder / "README.md").write_text(_card(model, classifier))
    (folder / "examples").mkdir(exist_ok=True)
    pictures = examples or Path(fetch_folder(model, ["pictures/sample-*.png"]), "pictures")
    for path in sorted(pictures.glob("*.png" if examples else "sample-*.png")):
        shutil.copyfile(path, folder / "examples" / path.name)


def _card(model: str, classifier: str | None) -> str:
    data = SpaceCardData(
        title="MAGE",
        emoji="🧙",
        colorFrom="purple",
        colorTo="pink",
        sdk="gradio",
        sdk_version="6.31.0",
        app_file="app.py",
        license="apache-2.0",
        models=[model, *([classifier] if classifier else [])],
        short_description="Generate, edit and look at images with one model",
    )
    variables = f"`MAGE_MODEL={model}`" + (f" and `MAGE_CLASSIFIER={classifier}`" if classifier else "")
    text = f"Shows [{model}](https://huggingface.co/{model}); it needs the variables {variables}."
    return f"---\n{data.to_yaml()}\n---\n\n{text}\n"


def push(folder: Path, name: str, model: str, classifier: str | None = None):
    """Creates the Space if need be, tells it its models, and uploads its files."""
    api = HfApi()
    values = {"MAGE_MODEL": model} | ({"MAGE_CLASSIFIER": classifier} if classifier else {})
    with explained(name, kind="space"):
        variables = [{"key": key, "value": value} for key, value in values.items()]
        api.create_repo(name, repo_type="space", space_sdk="gradio", space_variables=variables, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="space", folder_path=folder, commit_message="Update the Space")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Writes the files of a Space that shows a model.")
    parser.add_argument("--model_name_or_path", required=True, help="the pipeline's name on the Hub")
    parser.add_argument("--classifier_name_or_path", help="a classifier's name on the Hub")
    parser.add_argument("--examples", type=Path, help="a folder of images (PNG); by default those of the card")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/space"))
    parser.add_argument("--push_to_hub", metavar="NAME", help="upload the files to this Space")
    arguments = parser.parse_args(argv)
    models = (arguments.model_name_or_path, arguments.classifier_name_or_path)
    try:
        write_space(arguments.output_dir, *models, arguments.examples)
        if arguments.push_to_hub:
            push(arguments.output_dir, arguments.push_to_hub, *models)
    except OSError as error:
        raise SystemExit(str(error)) from error
    print(f"{arguments.output_dir} is a Space's repository.")


if __name__ == "__main__":
    main()
