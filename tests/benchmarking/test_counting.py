"""The work that is kept in docs/counted_work.json does not grow."""

import json

import pytest

from tests.in_process import ROOT
from transformers_mage.benchmarking.counting import CountedWork, count_flops, meta_model
from transformers_mage.benchmarking.workloads import ON_HOST, WORKLOADS

pytestmark = pytest.mark.slow

RECORDED = [CountedWork(**row) for row in json.loads((ROOT / "docs" / "counted_work.json").read_text())]


def name_of(work: CountedWork) -> str:
    return f"{work.size}-{work.workload}-{work.num_inference_steps}-{work.encoder_keep_share}-{work.full_steps}"


@pytest.mark.parametrize(
    "work", [pytest.param(w, marks=[] if w.size == "small" else [pytest.mark.slow]) for w in RECORDED], ids=name_of
)
def test_work_does_not_grow(work: CountedWork):
    counted = work.count().gflops
    assert counted <= work.gflops * (1 + 1e-6), (
        "If this is meant, run `python scripts/benchmark.py --counted_work docs/counted_work.json`."
    )


def test_every_workload_is_recorded():
    assert {work.workload for work in RECORDED} == set(WORKLOADS) - set(ON_HOST)


def test_growth_would_be_seen():
    """The small model's features with a layer more."""
    model = meta_model("small")
    before = count_flops("features", model)
    model.mage.layers.append(model.mage.layers[0])
    assert count_flops("features", model) > before * 1.01
