import json
import re

import pytest

from tests.in_process import load_script

TINY = ["--size", "small", "--batch_size", "2", "--warmup", "0", "--num_inference_steps", "2", "--device", "cpu"]
ONCE = ["--repetitions", "1", "--warmup", "0", "--memory", "false"]


@pytest.fixture
def run_benchmark():
    return load_script("benchmark")


@pytest.mark.slow
def test_every_workload_is_measured_and_compared(run_benchmark, tmp_path, capsys):
    files = ["--json", tmp_path / "results.json", "--markdown", tmp_path / "tables.md"]
    run_benchmark([*TINY, "--repetitions", "2", "--compare", "plain", *files])

    saved = json.loads((tmp_path / "results.json").read_text())
    variants = {(result["workload"], result["variant"]) for result in saved["results"]}
    compared = ("train", "train-pixels", "features", "extract", "generate", "encode", "decode", "load-jpegs")
    assert variants == {(workload, variant) for workload in compared for variant in ("fast", "plain")} | {
        ("draw", "fast"),
        ("load-tokens", "fast"),
    }
    for result in saved["results"]:
        assert len(result["seconds"]) == 2
        assert (result["peak_memory"] is None) == result["workload"].startswith("load")
    text = (tmp_path / "tables.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert "| times as fast |" in text
    assert text.startswith("`python scripts/benchmark.py --size small")


@pytest.mark.slow
def test_a_tokenizers_training_needs_more_than_the_rest(run_benchmark, capsys):
    pytest.importorskip("efficientnet_lite_pytorch")
    run_benchmark([*TINY, "--workloads", "train-tokenizer", *ONCE])
    assert "| train-tokenizer | fast | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_profile_and_half_precision(run_benchmark, capsys):
    run_benchmark([*TINY, "--workloads", "draw", *ONCE, "--profile", "true", "--dtype", "bfloat16"])

    shown = capsys.readouterr().out
    assert "draw:\n\n| operation | calls | ms | share |" in shown
    assert len(re.findall(r"^\| `aten::\w+` \| \d+ \|", shown, re.MULTILINE)) > 5


@pytest.mark.slow
def test_loading_by_workers(run_benchmark, tmp_path):
    words = ["--workloads", "load-tokens", "load-jpegs", "--dataloader_num_workers", "2", "--jpeg_size", "60", "80"]
    run_benchmark([*TINY, *words, "--repetitions", "3", "--json", tmp_path / "results.json"])

    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [result["images_per_second"] > 0 for result in results] == [True, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workloads", "sing"], "can be train, .*, got sing"),
        (["--repetitions", "0"], "`--repetitions` must be at least 1, got 0"),
        (["--dataloader_num_workers", "3"], "`--batch_size` 2 must be a multiple of `--dataloader_num_workers` 3"),
        (["--jpeg_size", "100"], "`--jpeg_size` takes a height and a width"),
        (["--device", "abacus"], "`--device abacus` is not available"),
    ],
)
def test_what_cannot_be_measured(run_benchmark, words, message, capsys):
    with pytest.raises(SystemExit) as error:
        run_benchmark([*TINY, *words])

    assert re.search(message, f"{error.value} {capsys.readouterr().err}")
