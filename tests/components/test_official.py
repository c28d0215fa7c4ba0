"""latte download, with a stand-in for huggingface_hub: nothing here uses a network."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from latte.commands import download as command
from latte.components import official
from latte.components.folders import find_parts
from latte.errors import UserError
from latte.weights.mapped import map_file


class Hub:
    """What latte uses of huggingface_hub; `fail` counts fetches that break off."""

    def __init__(self, files):
        self.files, self.calls, self.fail, self.damage = files, [], 0, False

    def HfApi(self, endpoint=None):
        self.calls.append(("list", endpoint))
        return self

    def model_info(self, repository, files_metadata):
        siblings = []
        for name, (content, large) in self.files.items():
            sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if large else None
            siblings.append(SimpleNamespace(rfilename=name, size=len(content), lfs=lfs, blob_id=sha1))
        return SimpleNamespace(sha="abc", siblings=siblings)

    def hf_hub_download(self, repository, name, revision, local_dir, endpoint):
        self.calls.append((repository, name, revision, endpoint))
        if self.fail:
            self.fail -= 1
            raise ConnectionError("no route to huggingface.co\nlong log")
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[name][0][::-1] if self.damage else self.files[name][0])

    @property
    def fetched(self):
        return [call[1] for call in self.calls if call[0] != "list"]


@pytest.fixture
def hub(monkeypatch):
    files = {
        "config.json": (b"{}", False),
        "diffusion_pytorch_model.safetensors": (b"weights", True),
        "diffusion_pytorch_model.bin": (b"others", True),
        "../evil.json": (b"{}", False),
        "README.md": (b"words", False),
    }
    made = Hub(files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def run(tmp_path, *more):
    command.main(["sd-vae-ft-mse", "--folder", str(tmp_path / "models"), *more])


def test_the_files_that_are_needed_come_whole(hub, tmp_path, capsys):
    run(tmp_path)
    folder = tmp_path / "models" / "sd-vae-ft-mse"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert hub.calls[1] == ("stabilityai/sd-vae-ft-mse", "config.json", "abc", None)
    said = capsys.readouterr().out
    assert "MIT" in said and f"whole, by size and checksum, in {folder}; then: latte convert" in said


def test_what_is_there_is_not_fetched_again_but_what_is_damaged_is(hub, tmp_path):
    run(tmp_path)
    (tmp_path / "models" / "sd-vae-ft-mse" / "config.json").write_bytes(b"[]")
    run(tmp_path)
    assert hub.fetched == ["config.json", "diffusion_pytorch_model.safetensors", "config.json"]


def test_a_broken_connection_is_one_sentence_and_the_next_call_goes_on(hub, tmp_path):
    hub.fail = 1
    with pytest.raises(
        UserError, match=r"no route to huggingface.co; give the same .* --mirror https://hf-mirror.com$"
    ):
        run(tmp_path)
    run(tmp_path)
    assert len(hub.fetched) == 3


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_wrong_checksum_leaves_no_file(hub, tmp_path, name):
    hub.damage = True
    hub.files = {name: hub.files[name]}
    with pytest.raises(UserError, match="came damaged and was removed: its "):
        run(tmp_path)
    assert not list((tmp_path / "models" / "sd-vae-ft-mse").iterdir())


def test_a_mirror_is_asked_for_everything(hub, tmp_path):
    run(tmp_path, "--mirror", official.CHINA)
    assert {call[-1] for call in hub.calls} == {official.CHINA}


def test_a_dry_run_fetches_nothing(hub, tmp_path, capsys):
    run(tmp_path, "--dry_run")
    assert not hub.fetched and not (tmp_path / "models").exists()
    assert "diffusion_pytorch_model.safetensors (7 bytes)" in capsys.readouterr().out


def test_without_huggingface_hub_one_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub; install it: pip install huggingface_hub$"):
        run(tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["latte-2"], "there are no official weights latte-2; choose skytimelapse"),
        (["ffs", "--mirror", "hf-mirror.com"], "an address such as https://hf-mirror.com"),
        ([], "NAME is not given"),
    ],
)
def test_mistakes_are_one_sentence(hub, arguments, said):
    with pytest.raises(UserError, match=said):
        command.main(arguments)


def test_all_official_weights_are_listed_and_in_the_docs(capsys):
    command.main(["list"])
    listed = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    for name, each in official.OFFICIAL.items():
        row = next(line for line in page.splitlines() if f"latte download {name}`" in line)
        assert name in listed and each.licence in row and each.repository in row
        assert all(pattern.partition("/")[0] in row for pattern in each.files)


@pytest.mark.parametrize("find", [lambda: find_parts("no.pt", "vae.pt"), lambda: map_file("no.safetensors")])
def test_where_weights_are_missing_the_way_to_official_ones_is_said(find):
    with pytest.raises(UserError, match="does not exist.*`latte download list` shows the official weights"):
        find()
