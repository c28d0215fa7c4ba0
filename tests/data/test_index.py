"""Listing data sets: every layout, and what is said of folders and tables that are not as described."""

import csv

import pytest

from latte.config import DataConfig
from latte.data.index import list_records
from latte.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def listed(root, **options):
    index = list_records(DataConfig(data_folder=str(root), **options))
    return [(record.path.relative_to(root).as_posix(), record.label) for record in index.records], index


def test_frame_folders_are_videos_and_the_folders_above_them_classes(tmp_path):
    touch(tmp_path, "b/two/x_1.jpg", "a/one/x_1.jpg", "a/one/x_2.jpg", "a/three/x_1.png", "a/notes.txt")
    found, index = listed(tmp_path)
    assert found == [("a/one", 0), ("a/three", 0), ("b/two", 1)]
    assert index.classes == ["a", "b"]


def test_video_files_are_found_at_any_depth(tmp_path):
    touch(tmp_path, "z.mp4", "deep/er/a.avi", "deep/readme.md")
    assert listed(tmp_path, data_layout="video_files")[0] == [("deep/er/a.avi", 0), ("z.mp4", 0)]


def test_class_folders_are_numbered_in_alphabetical_order(tmp_path):
    touch(tmp_path, "Yoga/1.avi", "Archery/2.avi", "Archery/1.avi", "stray.avi")
    found, index = listed(tmp_path, data_layout="class_folders")
    assert found == [("Archery/1.avi", 0), ("Archery/2.avi", 0), ("Yoga/1.avi", 1)]
    assert index.classes == ["Archery", "Yoga"]


def table(path, header, *rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_csv_with_names_numbers_and_captions(tmp_path):
    path = table(tmp_path / "t.csv", ("file", "kind", "text"), ("a.mp4", "night", "a, b"), ("b.mp4", "day", ""))
    columns = {"video_column": "file", "class_column": "kind", "caption_column": "text"}
    found, index = listed(tmp_path, data_layout="csv", csv_path=path, **columns)
    assert found == [("a.mp4", 1), ("b.mp4", 0)] and index.classes == ["day", "night"]
    assert [record.caption for record in index.records] == ["a, b", ""]
    path = table(tmp_path / "n.csv", ("video", "class"), ("a.mp4", "7"), ("b.mp4", "0"))
    assert listed(tmp_path, data_layout="csv", csv_path=path, class_column="class")[0] == [("a.mp4", 7), ("b.mp4", 0)]


@pytest.mark.parametrize("kinds", [("1", "10", "1.5"), ("1", "2", "night"), ("1.0", "10.0", "2.0"), ("0", "1", "-1")])
def test_classes_that_are_not_all_whole_numbers_or_all_names_are_refused(kinds, tmp_path):
    path = table(tmp_path / "t.csv", ("video", "class"), *[(f"{kind}.mp4", kind) for kind in kinds])
    with pytest.raises(UserError, match=r"t.csv, line [24]: the class '.*' is no whole number from 0 on"):
        listed(tmp_path, data_layout="csv", csv_path=path, class_column="class")


def test_a_frame_list_tells_equal_names_apart_by_their_folders(tmp_path):
    touch(tmp_path, "a/one/x_1.jpg", "b/one/x_1.jpg")
    (tmp_path / "list.txt").write_text("a/one/x_1.jpg\nb/one/x_1.jpg\n")
    _, index = listed(tmp_path, frame_list=str(tmp_path / "list.txt"))
    assert [(image.path.parent.parent.name, image.label) for image in index.images] == [("a", 0), ("b", 1)]


def test_a_frame_list_names_the_images_of_joint_training(tmp_path):
    touch(tmp_path, "a/one/x_1.jpg", "b/two/x_1.jpg")
    (tmp_path / "list.txt").write_text("two/x_1.jpg\none/x_1.jpg\n\n")
    _, index = listed(tmp_path, frame_list=str(tmp_path / "list.txt"))
    assert [(record.path.name, record.label) for record in index.images] == [("x_1.jpg", 1), ("x_1.jpg", 0)]
    (tmp_path / "list.txt").write_text("three/x_1.jpg\n")
    with pytest.raises(UserError, match="line 1: there is no video 'three'"):
        listed(tmp_path, frame_list=str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"data_folder": None}, "data_folder is not set"),
        ({"data_folder": "missing"}, "is not a folder; correct it"),
        ({}, "holds no videos in the layout frame_folders"),
        ({"data_layout": "class_folders"}, "holds no videos in the layout class_folders"),
        ({"data_layout": "csv"}, "csv_path is not set"),
        ({"data_layout": "csv", "csv_path": "missing.csv"}, "missing.csv cannot be read"),
        (
            {"data_layout": "csv", "csv_path": "t.csv", "class_column": "kind"},
            "no column 'kind'; class_column must be one",
        ),
        ({"data_layout": "csv", "csv_path": "t.csv", "class_column": "class"}, "t.csv, line 3 has no class"),
        ({"data_layout": "csv", "csv_path": "empty.csv"}, "no column 'video'; .* first line, which is empty"),
        ({"data_layout": "video_files", "frame_list": "empty.csv"}, "leave frame_list out"),
        ({"frame_list": "missing.txt"}, "frame_list missing.txt cannot be read"),
    ],
)
def test_bad_data_sets(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t.csv", ("video", "class"), ("", "x"), ("a.mp4", ""))
    (tmp_path / "empty.csv").write_text("")
    if {"data_layout", "frame_list"} & set(options) == {"frame_list"}:
        touch(tmp_path, "clip/x_1.jpg")
    elif "frame_list" in options:
        touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match=said):
        list_records(DataConfig(**{"data_folder": str(tmp_path), **options}))
