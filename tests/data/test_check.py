"""What a dry run says of the files of a data set: those that are missing, broken or too short."""

import logging

import numpy as np
import pytest
from PIL import Image

from latte.config import DataConfig
from latte.data import check
from latte.data.check import check_files
from latte.data.dataset import PixelStore, VideoDataset
from latte.data.index import list_records
from latte.errors import UserError


@pytest.fixture
def dataset(tmp_path):
    """Return a data set whose table names these folders, of which `there` exist."""

    def make(names, there, **options):
        for name in there:
            (tmp_path / name).mkdir()
            for number in range(2 if name.startswith("short") else 4):
                Image.new("L", (8, 8), number).save(tmp_path / name / f"{number}.png")
            if name.startswith("broken"):
                (tmp_path / name / "1.png").write_bytes(b"broken")
        (tmp_path / "t.csv").write_text("\n".join(["video", *names]))
        options = DataConfig(data_folder=str(tmp_path), data_layout="csv", csv_path=str(tmp_path / "t.csv"), **options)
        return VideoDataset(list_records(options), 4, PixelStore(8, "crop_resize"), options, 0)

    return make


def test_a_table_most_of_whose_paths_are_wrong_is_refused(dataset):
    names = [f"v{k}" for k in range(31)]
    with pytest.raises(
        UserError, match=r"28 of 31 videos do not exist, the first is .*v0; .* 0.1: check data_folder x"
    ):
        check_files(dataset(names, names[28:]), 0.1, "data_folder x")


def test_a_few_missing_broken_and_short_videos_are_named(dataset, caplog):
    names = ["v0", "broken", "short", "x" * 300, *[f"v{k}" for k in range(1, 7)]]
    data = dataset(names, [name for name in names if len(name) < 300])
    with caplog.at_level(logging.INFO):
        check_files(data, 0.3, "data_folder x")
    assert "1 of 10 videos do not exist, the first is" in caplog.text
    assert "cannot be used: cannot read the frame" in caplog.text and "short has 2 frames, but 4 frames" in caplog.text
    assert "9 of 10 videos opened, 2 of them cannot be used" in caplog.text
    with pytest.raises(
        UserError, match="1 of 10 videos do not exist, .*; 2 of 10 cannot be used, the first: cannot read"
    ):
        check_files(data, 0.2, "data_folder x")


def test_of_a_large_data_set_every_path_is_looked_for_and_some_videos_are_opened(dataset, caplog, monkeypatch):
    monkeypatch.setattr(check, "OPENED", 3)
    names = [f"v{k}" for k in range(8)]
    data, opened = dataset([*names, "missing"], names), []
    monkeypatch.setattr(data, "problem", opened.append)
    with caplog.at_level(logging.INFO):
        check_files(data, 0.2, "data_folder x")
    assert opened == [0, 3, 7] and "1 of 9 videos do not exist" in caplog.text


def test_images_of_a_frame_list_are_looked_for(dataset, tmp_path, caplog):
    (tmp_path / "list.txt").write_text("a/0.png\na/1.png\nb/9.png\n")
    data = dataset(["a", "b"], ["a", "b"], frame_list=str(tmp_path / "list.txt"))
    with pytest.raises(UserError, match=r"1 of 3 images of frame_list do not exist, the first is .*9.png"):
        check_files(data, 0.1, "data_folder x")
    check_files(data, np.inf, "data_folder x")
    assert "1 of 3 images of frame_list do not exist" in caplog.text
