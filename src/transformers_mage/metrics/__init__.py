"""Metrics as `evaluate.Metric` classes: classification, generation and reconstruction.

They work offline, keep sums instead of samples, and give over several processes what one process gives. Anybody may
use them: they know how data is loaded, and nothing of training. They need the extra `evaluation`; the Inception
network needs `inception` too, and [`Evaluator`], which reads whole sources, `training`.

```python
accuracy = Accuracy()
for batch in loader:
    logits = model(batch["pixel_values"]).logits
    predictions, references = accelerator.gather_for_metrics((logits, batch["labels"]))
    accuracy.add_batch(predictions=predictions, references=references)
accuracy.compute()  # {"accuracy": ...}

fid = FrechetInceptionDistance(feature_network)  # any callable from images to features; Inception by default
fid.add_batch(references=photographs)
fid.add_batch(predictions=pipe(num_images=64, output_type="pt").images)
fid.compute()  # {"fid": ...}
```
"""

from ..lazy import lazy_front

try:
    import evaluate  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"transformers_mage.metrics needs `evaluate`: `pip install transformers-mage[evaluation]` ({error})."
    ) from error

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "accuracy": ["Accuracy", "MeanPerClassAccuracy", "Top5Accuracy"],
        "evaluation": ["METRICS", "Evaluator", "SavedStatistics", "Side", "compute", "possible_metrics"],
        "feature_networks": [
            "FeatureBatch",
            "FeatureNetwork",
            "InceptionFeatures",
            "TransformersFeatures",
            "load_feature_network",
        ],
        "generation": ["FrechetInceptionDistance", "InceptionScore", "KernelInceptionDistance", "PrecisionRecall"],
        "images": ["ImageCollection"],
        "reconstruction": [
            "CodeUsage",
            "PeakSignalNoiseRatio",
            "PerceptualDifference",
            "StructuralSimilarity",
            "TokenizerScores",
        ],
        "statistics": ["is_statistics_file", "load_statistics", "save_statistics"],
        "streaming_metric": ["StreamingMetric"],
    },
)
