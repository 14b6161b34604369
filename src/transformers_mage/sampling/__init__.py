"""
Many samples on many processes: which image is made where and from what randomness, and how the images are kept.

For whoever makes more images than fit in memory, as scripts/generate.py does. It knows the pipeline, and nothing of
data sets, training or metrics.
"""

from .folder import MANIFEST, check_folder, samples_path, write_manifest
from .plan import ClassPlan, batches_of, generator_of
from .sampler import Sampler
from .writers import FORMATS, ImageFolderWriter, NpzWriter, SampleWriter, TarWriter

__all__ = [
    "FORMATS",
    "MANIFEST",
    "ClassPlan",
    "ImageFolderWriter",
    "NpzWriter",
    "SampleWriter",
    "Sampler",
    "TarWriter",
    "batches_of",
    "check_folder",
    "generator_of",
    "samples_path",
    "write_manifest",
]
