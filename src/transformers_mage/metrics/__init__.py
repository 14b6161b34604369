"""Metrics as `evaluate.Metric` classes: classification, generation and reconstruction.

They work offline, keep sums instead of samples, and give over several processes what one process gives. They need the
extra `evaluation`; the Inception network needs the extra `inception` besides.

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

try:
    import evaluate  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"transformers_mage.metrics needs `evaluate`: `pip install transformers-mage[evaluation]` ({error})."
    ) from error

from .accuracy import Accuracy, MeanPerClassAccuracy, Top5Accuracy
from .feature_networks import (
    FeatureBatch,
    FeatureNetwork,
    InceptionFeatures,
    TransformersFeatures,
    load_feature_network,
)
from .generation import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall
from .reconstruction import (
    CodeUsage,
    PeakSignalNoiseRatio,
    PerceptualDifference,
    StructuralSimilarity,
    TokenizerScores,
)
from .statistics import is_statistics_file, load_statistics, save_statistics
from .streaming_metric import StreamingMetric

__all__ = [
    "Accuracy",
    "CodeUsage",
    "FeatureBatch",
    "FeatureNetwork",
    "FrechetInceptionDistance",
    "InceptionFeatures",
    "InceptionScore",
    "KernelInceptionDistance",
    "MeanPerClassAccuracy",
    "PeakSignalNoiseRatio",
    "PerceptualDifference",
    "PrecisionRecall",
    "StreamingMetric",
    "StructuralSimilarity",
    "TokenizerScores",
    "Top5Accuracy",
    "TransformersFeatures",
    "is_statistics_file",
    "load_feature_network",
    "load_statistics",
    "save_statistics",
]
