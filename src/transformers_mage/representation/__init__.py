"""
How much frozen features tell, and classifiers trained on them: features of whole data sets, linear probes, nearest
neighbours, fine-tuning, and their scores.

For the scripts that learn from labels or write features, and for whoever does so in Python. It knows the model, the
data and the metrics.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "arguments": ["ClassificationArguments"],
        "classifiers": [
            "load_classifier",
            "load_encoder",
            "probe_as_classifier",
            "save_classifier",
            "write_classifier",
        ],
        "comparing": ["DescribedImages", "describe", "probe_features", "random_encoder"],
        "extraction": ["ExtractionReport", "Feature", "FeatureExtractor", "extract_features"],
        "feature_store": ["FeatureStore"],
        "finetuning": ["BestClassifier", "ClassifierInputs", "layer_decay_groups"],
        "lars": ["LARS"],
        "mixing": ["Mixup"],
        "probing": [
            "FrozenFeatures",
            "LinearProbe",
            "ProbeHead",
            "ProbeHeads",
            "fit_best_probe",
            "fit_linear_probe",
            "nearest_neighbour_scores",
        ],
        "rand_augment": ["RandAugment"],
        "results": ["Result", "save_results", "table"],
        "scoring": ["ClassificationScores", "evaluate", "evaluation_loader", "score"],
    },
)
