"""latte gallery: a training as one HTML file that fetches nothing."""

import re

import numpy as np
import pytest
from PIL import Image

from latte.commands import gallery as command
from latte.config import TrainConfig
from latte.config.parser import save_config
from latte.errors import UserError
from latte.io.video import save_gif
from latte.training.gallery import machine_line
from latte.training.metrics import COLUMNS


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "Latte-S-2-20250101-120000"
    for name in ("ckpt", "samples", "evaluation"):
        (folder / name).mkdir(parents=True)
    save_config(
        TrainConfig(model_name="Latte-S/2", max_steps=40, data_folder="<script>alert(1)</script>"),
        folder / "config.yaml",
    )
    for step in (20, 40):
        save_gif(
            np.full((2, 8, 8, 3), step, np.uint8) + np.arange(2, dtype=np.uint8)[:, None, None, None],
            folder / f"samples/step-{step:08d}.gif",
        )
    for name in ("loss.png", "evaluation/fvd.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    rows = [f"{step},0.5,{1 / step},0.1,0.1,1.0,0.0001,1.0,0" for step in range(1, 41)]
    (folder / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    (folder / "log.txt").write_text(
        f"2025-01-01 12:00:00 {machine_line('Ascend910B2 x 8 ranks')}\n2025-01-01 13:00:00 end\n"
    )
    return folder


def test_one_file_has_samples_curves_options_metrics_and_machine(run, capsys):
    command.main([str(run)])
    assert capsys.readouterr().out.strip() == str(run / "gallery.html")
    page = (run / "gallery.html").read_text()
    assert page.index("step 40") < page.index("step 20")
    assert page.count("data:image/gif;base64,") == 2 and page.count("data:image/png;base64,") == 2
    for words in ("Ascend910B2 x 8 ranks", "max_steps", "all 40 rows", "0.025", "2025-01-01 13:00:00", "fvd"):
        assert words in page, words
    assert "sink_size" in page.partition("all options")[2] and "sink_size" not in page.partition("all options")[0]


def test_nothing_is_fetched_and_nothing_runs(run):
    command.main([str(run)])
    page = (run / "gallery.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import", page)
    assert "&lt;script&gt;" in page and "default-src 'none'" in page


def test_a_run_without_a_checkpoint_has_a_page_too(tmp_path):
    (tmp_path / "run" / "ckpt").mkdir(parents=True)
    save_config(TrainConfig(), tmp_path / "run" / "config.yaml")
    command.main([str(tmp_path / "run"), "--output_path", str(tmp_path / "page.html")])
    assert "There are none yet" in (tmp_path / "page.html").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a training"):
        command.main([str(tmp_path)])
    assert not list(tmp_path.iterdir())
