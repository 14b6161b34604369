"""
Published checkpoints, both ways: read without running anything in them, held against what the original has, written as
folders that the Hub understands, and written back. For `python -m transformers_mage.convert_original_checkpoint`; it
knows the model, and needs no extra.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "folder": ["compare_passes", "fill_model", "forward_pass", "read_model", "write_model"],
        "names": ["convert_model", "convert_tokenizer", "restore_model", "restore_tokenizer", "tokenizer_config"],
        "original_format": ["write_original"],
        "reading": ["CheckpointError", "OriginalCheckpoint", "read_checkpoint"],
        "sizes": ["build_empty", "check_names_and_shapes", "read_config"],
    },
)
