"""Folders as people have them: linked, with what systems leave in them, and with links that lead in circles."""

import os

import pytest

from latte.errors import UserError
from latte.io import listing
from latte.io.listing import walk


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root):
    return [
        (path.relative_to(root) / name).as_posix() for path, names in walk(root, (".mp4", ".png")) for name in names
    ]


def test_what_systems_and_editors_leave_is_passed_over(tmp_path):
    touch(tmp_path, "day/b.mp4", "day/A.MP4", "day/._b.mp4", "day/.b.mp4", "day/b.mp4~", "day/b.mp4.part", "Thumbs.db")
    folders = (".ipynb_checkpoints", "__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
    touch(tmp_path, *[f"{folder}/day/b.mp4" for folder in folders], "day/.Trash-1000/b.mp4", "day/@eaDir/b.mp4/s.png")
    assert found(tmp_path) == ["day/A.MP4", "day/b.mp4"]


def test_a_hidden_folder_above_the_data_does_not_matter(tmp_path):
    touch(tmp_path, ".cache/data/a.mp4")
    assert found(tmp_path / ".cache" / "data") == ["a.mp4"]


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    touch(tmp_path, "elsewhere/night/c.mp4", "data/day/a.mp4")
    (tmp_path / "data/night").symlink_to(tmp_path / "elsewhere/night")
    (tmp_path / "data/day/up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere/night/self").symlink_to(tmp_path / "elsewhere/night")
    assert found(tmp_path / "data") == ["day/a.mp4", "night/c.mp4"]


def test_links_in_very_many_ways_are_refused(tmp_path):
    for name in "abcdefgh":
        touch(tmp_path, f"{name}/x.mp4")
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    with pytest.raises(UserError, match="links lead to the folder .* in more than 64 ways"):
        found(tmp_path)


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    touch(tmp_path, "day/a.mp4")
    (tmp_path / ".#a.mp4").symlink_to("user@host.1234")  # an editor's lock
    assert found(tmp_path) == ["day/a.mp4"]
    (tmp_path / "night").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="the link .*night leads nowhere; mend or remove it"):
        found(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "day/a.mp4", "night/b.mp4")
    scandir = os.scandir

    def refuse(path):
        if path.name == "night":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(UserError, match="cannot read the folder .*night: Permission denied"):
        found(tmp_path)
