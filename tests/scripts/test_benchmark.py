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
def test_settings_take_turns(run_benchmark, tmp_path):
    """Each does the work of its own flags, and is compared with the plain path."""
    others = ["encoder_keep_share=0.5,full_steps=2", "dtype=bfloat16"]
    words = ["--workloads", "generate", "--num_inference_steps", "6", "--compare", "plain", *others]
    run_benchmark([*TINY, *words, *ONCE, "--markdown", tmp_path / "tables.md", "--json", tmp_path / "results.json"])

    results = {r["variant"]: r for r in json.loads((tmp_path / "results.json").read_text())["results"]}
    assert list(results) == ["fast", *others, "plain"]
    work = {variant: result["flops_per_image"] for variant, result in results.items()}
    assert work["fast"] == work["plain"] == work["dtype=bfloat16"] > 1.2 * work[others[0]]
    compared = re.findall(r"^\| generate \| (.+?) \| plain \|", (tmp_path / "tables.md").read_text(), re.MULTILINE)
    assert compared == ["fast", *others]


@pytest.mark.slow
def test_eight_bits_take_turns(run_benchmark, capsys):
    pytest.importorskip("torchao")
    words = ["--workloads", "features", "--compare", "quantization=int8-weights", "quantization=int8-products"]
    run_benchmark([*TINY, *words, *ONCE])
    assert "| features | quantization=int8-products | fast |" in capsys.readouterr().out


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
        (["--size", "vit-huge"], "A size is vit-base, .*; got `vit-huge`"),
        (["--repetitions", "0"], "`--repetitions` must be at least 1, got 0"),
        (["--dataloader_num_workers", "3"], "`--batch_size` 2 must be a multiple of `--dataloader_num_workers` 3"),
        (["--jpeg_size", "100"], "`--jpeg_size` takes a height and a width"),
        (["--compare", "plane"], "`--compare` takes `plain` or FLAG=VALUE,... .*, got `plane`"),
        (["--compare", "batch_size=3"], "with the flags dtype, .*, got `batch_size=3`"),
        (["--compare", "full_steps=0"], "`--full_steps` must be at least 1, got 0"),
        (["--device", "abacus"], "`--device abacus` is not available"),
    ],
)
def test_what_cannot_be_measured(run_benchmark, words, message, capsys):
    with pytest.raises(SystemExit) as error:
        run_benchmark([*TINY, *words])

    assert re.search(message, f"{error.value} {capsys.readouterr().err}")
