"""Metrics as `evaluate.Metric` classes: classification, generation and reconstruction.

They work offline, keep sums instead of samples, and give over several processes what one process gives. They need the
extra `evaluation`; the Inception network needs the extra `inception` besides.
"""

try:
    import evaluate  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"transformers_mage.metrics needs `evaluate`: `pip install transformers-mage[evaluation]` ({error})."
    ) from error

from .classification import Accuracy, MeanPerClassAccuracy, Top5Accuracy
from .features import FeatureBatch, FeatureExtractor, InceptionFeatures, TransformersFeatures
from .generation import FrechetInceptionDistance, InceptionScore, KernelInceptionDistance, PrecisionRecall
from .reconstruction import PeakSignalNoiseRatio, StructuralSimilarity, TokenizerScores
from .statistics import is_statistics_file, load_statistics, save_statistics
from .streaming import StreamingMetric

__all__ = [
    "Accuracy",
    "FeatureBatch",
    "FeatureExtractor",
    "FrechetInceptionDistance",
    "InceptionFeatures",
    "InceptionScore",
    "KernelInceptionDistance",
    "MeanPerClassAccuracy",
    "PeakSignalNoiseRatio",
    "PrecisionRecall",
    "StreamingMetric",
    "StructuralSimilarity",
    "TokenizerScores",
    "Top5Accuracy",
    "TransformersFeatures",
    "is_statistics_file",
    "load_statistics",
    "save_statistics",
]
