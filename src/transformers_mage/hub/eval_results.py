"""Results as the block of a model card that the Hub reads."""

from huggingface_hub import EvalResult, ModelCardData

from .cards import markdown_table

METRIC_NAMES = {
    "fid": "FID",
    "inception_score": "Inception Score",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "rfid": "Reconstruction FID",
}


def model_card_block(
    scores: dict[str, float],
    model_name: str,
    dataset_name: str,
    feature_network: str,
    task_type: str = "unconditional-image-generation",
    dataset_split: str | None = None,
) -> str:
    """A model card's results: `model-index` metadata, which the Hub shows, and the same as a Markdown table.

    Args:
        scores (`dict[str, float]`): by metric; `NAME_std` is the spread of `NAME`.
        model_name, dataset_name (`str`): what was scored, and against what.
        feature_network (`str`): the network whose features were compared; named with every score.
        task_type (`str`, *optional*): the Hub's name of the task.
        dataset_split (`str`, *optional*): the split of the data set.

    Returns:
        `str`: a text that `huggingface_hub.ModelCard` parses.
    """
    names = [name for name in scores if not name.endswith("_std")]
    results = [
        EvalResult(
            task_type=task_type,
            dataset_type=dataset_name,
            dataset_name=dataset_name,
            dataset_split=dataset_split,
            metric_type=name,
            metric_name=METRIC_NAMES.get(name, name),
            metric_value=float(f"{scores[name]:.5g}"),
            metric_args={"feature_network": feature_network},
        )
        for name in names
    ]
    metadata = ModelCardData(model_name=model_name, eval_results=results).to_yaml()
    rows = [(METRIC_NAMES.get(name, name), _with_spread(scores, name)) for name in names]
    table = markdown_table([f"Metric ({feature_network} features, {dataset_name})", ""], rows)
    return f"---\n{metadata}\n---\n\n{table}\n"


def _with_spread(scores: dict[str, float], name: str) -> str:
    spread = scores.get(f"{name}_std")
    return f"{scores[name]:.5g}" + ("" if spread is None else f" ± {spread:.2g}")
