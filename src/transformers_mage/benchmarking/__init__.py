"""
What `scripts/benchmark.py` measures and counts: the things that people do with MAGE as calls, timed in turns with a
plain way of doing them. For that script and for whoever changes what it measures; it may use every other room.
"""

from .counting import count_all, count_flops
from .measuring import Measurement, interleave, measure_peak_memory, measure_product_rate, profile_table
from .models import SIZES, build_model, plain_copy
from .reporting import as_json, describe_machine, markdown_table, ratio_table
from .workloads import ON_HOST, WITHOUT_PLAIN_PATH, WORKLOADS, Setting

__all__ = [
    "ON_HOST",
    "SIZES",
    "WITHOUT_PLAIN_PATH",
    "WORKLOADS",
    "Measurement",
    "Setting",
    "as_json",
    "build_model",
    "count_all",
    "count_flops",
    "describe_machine",
    "interleave",
    "markdown_table",
    "measure_peak_memory",
    "measure_product_rate",
    "plain_copy",
    "profile_table",
    "ratio_table",
]
