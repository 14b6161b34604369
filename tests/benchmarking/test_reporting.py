import json
from dataclasses import replace

import torch

from transformers_mage.benchmarking.measuring import Measurement
from transformers_mage.benchmarking.reporting import as_json, describe_machine, markdown_table, ratio_table, ratios

FAST = Measurement("train", "fast", 2, [1.0, 2.0], peak_memory=5_000_000, flops_per_image=1e9, product_rate=4e9)
PLAIN = Measurement("train", "plain", 2, [3.0, 5.0], peak_memory=10_000_000, flops_per_image=1e9, product_rate=4e9)
LOAD = Measurement("load-tokens", "fast", 2, [0.5])


def test_ratios_are_of_pairs():
    assert ratios(FAST, PLAIN) == [3.0, 2.5]
    assert ratio_table([FAST, PLAIN, LOAD]).splitlines()[2:] == ["| train | fast | plain | 2.75 | 3.00, 2.50 | 50% |"]
    assert ratio_table([FAST]) == ""


def test_without_the_plain_path_ratios_are_of_the_fast_one():
    other = replace(FAST, variant="full_steps=2", seconds=[0.5, 0.5])
    assert ratio_table([FAST, other]).splitlines()[2:] == [
        "| train | full_steps=2 | fast | 3.00 | 2.00, 4.00 | 100% |"
    ]
    rows = ratio_table([FAST, other, PLAIN]).splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in rows] == [["fast", "plain"], ["full_steps=2", "plain"]]


def test_table():
    rows = markdown_table([FAST, LOAD]).splitlines()

    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == "| train | fast | 2 | 1.33 | 750 | 5 | 1 | 33% |"
    assert rows[3] == "| load-tokens | fast | 2 | 4 | 250 | - | - | - |"


def test_json_has_everything_again():
    machine = describe_machine(torch.device("cpu"))
    figures = json.loads(json.dumps(as_json([FAST, LOAD], machine, {"size": "small"})))

    assert figures["machine"]["torch"] == torch.__version__
    assert figures["results"][0]["seconds"] == [1.0, 2.0]
    assert figures["results"][0]["share"] == FAST.share
    assert figures["results"][1]["achieved_flops"] is None
