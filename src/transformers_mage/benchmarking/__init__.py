"""
What `scripts/benchmark.py` measures and counts: the things that people do with MAGE as calls, timed in turns with a
plain way of doing them. For that script and for whoever changes what it measures; it may use every other room.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "counting": ["CountedWork", "count_all", "count_flops", "meta_model"],
        "measuring": ["Measurement", "interleave", "measure_peak_memory", "measure_product_rate", "profile_table"],
        "models": ["QUANTIZATIONS", "SIZES", "build_model", "plain_copy", "quantize", "read_sizes"],
        "reporting": ["as_json", "describe_machine", "markdown_table", "ratio_table"],
        "tuning": [
            *("PIPELINE_CHOICES", "SCHEDULER_CHOICES", "Tries", "averaged", "best_within", "combinations"),
            *("count_gflops", "draw_frontier", "frontier", "method_of", "pipe_with", "save_setting"),
            "without_weights",
        ],
        "workloads": ["NEED_MORE", "ON_HOST", "WITHOUT_PLAIN_PATH", "WORKLOADS", "Setting"],
    },
)
