"""
Images, and the tokens that they become: any `datasets` source opened, its images decoded, cropped and batched.

A [`DatasetSpec`] says what to load, [`ImageViews`] what to make of an image, [`Loading`] how a process loads, and
[`create_source`] makes batches of the three. Who trains, probes, samples, converts or measures stands on this room; it
knows the model's tokenizer, and nothing of what batches are used for.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "arguments": ["DataArguments"],
        "batches": ["Batch", "DataError", "EndlessBatches", "Loading", "Share", "Source"],
        "images": ["BrokenImageError", "center_view", "evaluation_processor", "open_image"],
        "indexed": ["EncodedImages", "IndexedSource", "InMemoryImages", "InMemoryTokens"],
        "labelled_images": ["EvaluationImages", "LabelledImages"],
        "labels": ["Classes", "draw_subset", "hold_out"],
        "loading": ["Columns", "DatasetSpec", "find_columns", "load_images", "load_split"],
        "sources": ["create_source", "source_of"],
        "streamed": ["StreamedSource"],
        "token_cache": ["CacheMetadata", "CachedTokens"],
        "tokenization": ["BatchTokenizer", "load_tokenizer", "tokenize"],
        "views": ["Crops", "ImageViews", "RandomViews"],
    },
)
