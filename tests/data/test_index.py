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


def test_images_in_a_table_are_for_joint_training(tmp_path):
    path = table(tmp_path / "t.csv", ("video", "caption"), ("a.mp4", "x"), ("b.jpg", "y"), ("c.PNG", "z"))
    given = {"data_layout": "csv", "csv_path": path, "caption_column": "caption"}
    assert len(listed(tmp_path, **given)[0]) == 3
    found, index = listed(tmp_path, images_per_video=4, **given)
    assert found == [("a.mp4", 0)] and [image.caption for image in index.images] == ["y", "z"]
    path = table(tmp_path / "i.csv", ("video", "caption"), ("b.jpg", "y"))
    with pytest.raises(UserError, match="names images only; joint training needs videos beside them"):
        listed(tmp_path, images_per_video=4, **(given | {"csv_path": path}))


def csv_of(tmp_path, text, **options):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return listed(tmp_path, data_layout="csv", csv_path=str(tmp_path / "t.csv"), **options)


COLUMNS = {"class_column": "class", "caption_column": "caption"}


@pytest.mark.parametrize(
    "text",
    [
        'video,class,caption\na.mp4,1,x\nb.mp4,0,"y\n""z"""\n',
        '\ufeffvideo,class,caption\r\na.mp4,1,x\r\n\r\nb.mp4,0,"y\n""z"""\r\n',
        'caption;video; class\nx;a.mp4; 1\n"y\n""z""";b.mp4; 0\n;;\n',
        'video\tclass\tcaption\t\t\na.mp4\t1\tx\t\t\nb.mp4\t0\t"y\n""z"""\t\t\n'.encode("utf-16"),
    ],
    ids=["plain", "mark", "semicolons", "utf16"],
)
def test_tables_as_programs_write_them_are_read(text, tmp_path):
    found, index = csv_of(tmp_path, text, **COLUMNS)
    assert found == [("a.mp4", 1), ("b.mp4", 0)]
    assert [record.caption for record in index.records] == ["x", 'y\n"z"']


@pytest.mark.parametrize(
    "text, said",
    [
        ("video,class,caption\na,1,x\nb,1,a dog, running, fast\n", "line 3 has 5 fields, but the header has 3; put a"),
        ('video,class,caption\na,1,"x\ny"\nb,1\n', "line 4 has 2 fields, but the header has 3"),
        ('video,class,caption\na,1,x\nb,1,"open\nc,1,z\n', "line 3 cannot be read: unexpected end of data; close the"),
        ('video,class,caption\na,1,"x" y\nb,1,z\n', "line 2 cannot be read: ',' expected after"),
        ("video,class,caption\na,1,x\0y\n", "line 2 (holds a NUL character|cannot be read: line contains NUL)"),
        ("video,class,caption\na,1,x\nvideo,class,caption\n", "line 3 is the header again; remove it"),
        ("video,class,class,caption\na,1,1,x\n", "the column 'class' twice; rename one"),
        (
            "file,kind,text\na,1,x\n",
            "no column 'video', 'class', 'caption'; video_column, class_column, caption_column",
        ),
        ("file;kind;text\na;1;x\n", "must be some of file, kind, text"),
        (
            "video,class,caption\na,1,x\nb,1,Z\xfcrich\n".encode("latin-1"),
            "line 3 is not UTF-8; save it as text in UTF-8",
        ),
        ("video,class,caption\na,1,x\n".encode("utf-16-le"), "NUL"),
        ("video,class,caption\n,1,x\nb,1,y\n", "line 2 has no video"),
        (
            "video,class,caption\na,2147483648,x\n",
            "line 2: the class '2147483648' is too large; number the classes from",
        ),
        ("video,class,caption\na," + "9" * 5000 + ",x\n", r"line 2: the class '9+\.\.\.9+' is too large"),
        ("video,class,caption\na,1e3,x\nb,2e3,x\n", "line 2: the class '1e3' is no whole number from 0 on"),
        ("video,class,caption\na,1,x\n../b.mp4,1,x\n", r"line 3: '\.\./b\.mp4' leads out of data_folder .* further up"),
        ("video,class,caption\nc/../../b.mp4,1,x\n", "line 2: .* leads out of data_folder"),
        ("video,class,caption\n/etc/passwd,1,x\n", "line 2: '/etc/passwd' leads out of data_folder"),
    ],
)
def test_lines_that_are_not_as_the_header_has_them_are_refused_by_number(text, said, tmp_path):
    with pytest.raises(UserError, match=said) as refused:
        csv_of(tmp_path, text, **COLUMNS)
    assert len(str(refused.value)) < 600


def test_a_field_beyond_the_limit_of_the_csv_module_is_refused_by_number(tmp_path):
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(UserError, match="line 3 cannot be read: field larger than field limit"):
            csv_of(tmp_path, "video,class,caption\na,1,x\nb,1," + "x" * 200, **COLUMNS)
    finally:
        csv.field_size_limit(before)


def test_rows_may_name_a_linked_folder_or_give_whole_paths_below_the_data(tmp_path):
    touch(tmp_path, "elsewhere/a.mp4", "data/b.mp4")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t.csv").write_text(f"video\nlink/a.mp4\n{tmp_path}/data/b.mp4\n{'x' * 300}.mp4\n")
    found, _ = listed(tmp_path / "data", data_layout="csv", csv_path=str(tmp_path / "t.csv"))
    assert [name for name, _ in found] == ["link/a.mp4", "b.mp4", "x" * 300 + ".mp4"]


def test_what_is_not_data_makes_no_class_and_linked_classes_are_classes(tmp_path):
    touch(
        tmp_path, "data/day/c/1.png", "elsewhere/night/c/1.png", "data/.ipynb_checkpoints/c/1.png", "data/day/._c/1.png"
    )
    (tmp_path / "data" / "night").symlink_to(tmp_path / "elsewhere" / "night")
    found, index = listed(tmp_path / "data")
    assert found == [("day/c", 0), ("night/c", 1)] and index.classes == ["day", "night"]


@pytest.mark.parametrize("stray", ["poster1.jpg", "day/poster1.jpg", "day/c1/thumbnails/1.png"])
def test_images_beside_videos_are_named_as_they_make_a_class(stray, tmp_path, caplog):
    touch(tmp_path, "day/c1/1.png", "day/c2/1.png", "night/c1/1.png", stray)
    assert len(listed(tmp_path)[1].classes) == 3
    assert "holds images and, in" in caplog.text and caplog.text.count("\n") == 1


def test_a_folder_without_videos_is_named_as_it_gets_no_number(tmp_path, caplog):
    touch(tmp_path, "day/1.mp4", "dusk/1.xyz", "night/1.m4v")
    assert listed(tmp_path, data_layout="class_folders")[1].classes == ["day", "night"]
    assert "dusk holds none of .mp4" in caplog.text and caplog.text.count("\n") == 1


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
    "line, said",
    [
        ("one/x_1.jpg", "line 1: 2 videos are called 'one'"),
        ("a/one/", "names no image"),
        ("a/one/..", "names no image"),
    ],
)
def test_a_line_of_a_frame_list_that_names_no_single_image_is_refused(line, said, tmp_path):
    touch(tmp_path, "a/one/x_1.jpg", "b/one/x_1.jpg")
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(UserError, match=said):
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
