"""
How much frozen features tell, and classifiers trained on them: features of whole data sets, linear probes, nearest
neighbours, fine-tuning, and their scores.

For the scripts that learn from labels or write features, and for whoever does so in Python. It knows the model, the
data and the metrics.
"""

from .arguments import ClassificationArguments
from .classifiers import load_classifier, load_encoder, probe_as_classifier, save_classifier
from .extraction import Feature, FeatureExtractor, extract_features
from .feature_store import FeatureStore
from .probing import (
    FrozenFeatures,
    LinearProbe,
    ProbeHead,
    ProbeHeads,
    fit_best_probe,
    fit_linear_probe,
    nearest_neighbour_scores,
)
from .results import Result, save_results, table
from .scoring import ClassificationScores, evaluate, score

__all__ = [
    "ClassificationArguments",
    "ClassificationScores",
    "Feature",
    "FeatureExtractor",
    "FeatureStore",
    "FrozenFeatures",
    "LinearProbe",
    "ProbeHead",
    "ProbeHeads",
    "Result",
    "evaluate",
    "extract_features",
    "fit_best_probe",
    "fit_linear_probe",
    "load_classifier",
    "load_encoder",
    "nearest_neighbour_scores",
    "probe_as_classifier",
    "save_classifier",
    "save_results",
    "score",
    "table",
]
