import io

import datasets
import diffusers.utils.logging
import transformers.utils.logging

from transformers_mage.progress import ProgressLines, library_bars_where_watched, progress_bar


def test_a_file_gets_lines():
    file = io.StringIO()
    for _ in ProgressLines(range(1000), desc="Counting", file=file, mininterval=0, miniters=250):
        pass
    lines = [line for line in file.getvalue().splitlines() if line]
    assert "\r" not in file.getvalue()
    assert len(lines) == 5
    assert all(line.startswith("Counting: ") for line in lines)
    assert "100%" in lines[-1]


def test_a_short_piece_of_work_is_one_line(capsys):
    assert list(progress_bar(range(100), desc="Counting")) == list(range(100))
    assert [line[:15] for line in capsys.readouterr().err.splitlines() if line] == ["Counting: 100%|"]


def test_bars_of_libraries_stay_out_of_files(capsys):
    modules = (datasets, diffusers.utils.logging, transformers.utils.logging)
    with library_bars_where_watched():
        assert not any(module.is_progress_bar_enabled() for module in modules)
        for _ in transformers.utils.logging.tqdm(range(3)):
            pass
    assert capsys.readouterr().err == ""
    assert all(module.is_progress_bar_enabled() for module in modules)
