"""
Many samples on many processes: which image is made where and from what randomness, and how the images are kept.

For whoever makes more images than fit in memory, as scripts/generate.py does. It knows the pipeline, and nothing of
data sets, training or metrics.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "folder": ["MANIFEST", "check_folder", "samples_path", "write_manifest"],
        "plan": ["ClassPlan", "batches_of", "generator_of"],
        "sampler": ["Sampler"],
        "writers": ["FORMATS", "ImageFolderWriter", "NpzWriter", "SampleWriter", "TarWriter"],
    },
)
