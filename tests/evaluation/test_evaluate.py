"""`latte evaluate`: distances of folders, with a network that stands in for I3D."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.clips import NETWORK, describe, make_folder
from support.golden_values import ROOT

from latte.commands.evaluate import main
from latte.config import EvaluateConfig, parse_config
from latte.errors import UserError
from latte.evaluation import evaluate
from latte.evaluation.evaluate import Network
from latte.evaluation.frechet import frechet_distance, statistics
from latte.io.video import read_frames


def options(tmp_path, **given):
    folders = {"output_path": str(tmp_path / "out"), "features_folder": str(tmp_path / "features")}
    defaults = {"metrics": ["fvd12_16f"], "real_stride": 1, "bootstrap": 4}
    return EvaluateConfig(
        **{**folders, **defaults, **{key: str(v) if key in ("real", "fake") else v for key, v in given.items()}}
    )


def run(tmp_path, network=NETWORK, **given):
    (result,) = evaluate.run(options(tmp_path, **given), network)
    return result


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for name, seed in (("a", 0), ("b", 1)):
        make_folder(root / name, seed=seed)
    make_folder(root / "noise", seed=2)
    for file in (root / "noise").glob("*/*.png"):
        pixels = np.random.default_rng(int(file.stem)).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return root


class Counting:
    """A network that counts clips, and stops the program after some, as a kill does."""

    def __init__(self, stop_after=10**9):
        self.clips, self.stop_after, self.batches = 0, stop_after, set()

    def __call__(self, clips):
        if self.clips >= self.stop_after:
            raise KeyboardInterrupt
        self.clips += len(clips)
        self.batches.add(len(clips))
        return describe(clips)

    def network(self):
        return Network(self, "stand-in")


def test_a_set_is_at_no_distance_from_itself_and_noise_is_far(tmp_path, folders):
    itself, halves, noise = (
        run(tmp_path, real=folders / "a", fake=folders / name)["value"] for name in ("a", "b", "noise")
    )
    assert itself < 1e-9 < 10 < halves < noise / 10


def test_the_distance_is_that_of_all_clips_and_is_in_the_file(tmp_path, folders):
    result = run(tmp_path, real=folders / "a", fake=folders / "b")
    sets = [
        describe(np.stack([read_frames(folders / name / f"clip{k:03d}") for k in range(12)])) for name in ("a", "b")
    ]
    assert result["value"] == pytest.approx(frechet_distance(*map(statistics, sets)), rel=1e-9)
    kept = json.loads((tmp_path / "out/b-fvd12_16f.json").read_text())
    assert kept["value"] == result["value"] and kept["interval"][0] < kept["value"] < kept["interval"][1]
    assert (kept["real"]["clips"], kept["fake"]["clips"], kept["notes"]) == (12, 12, [])
    assert result["real"]["flicker"] > 0 and "fvd12_16f: " in evaluate.describe_result(result)


def test_neither_batches_nor_threads_nor_names_order_change_it(tmp_path, folders):
    for number in range(12):  # the same clips, met in another order
        name = sorted(path.name for path in (folders / "b").iterdir())[number]
        shutil.copytree(folders / "b" / name, tmp_path / "renamed" / f"x{(7 * number) % 12:02d}")
    one = run(tmp_path, real=folders / "a", fake=folders / "b", batch_size=1, num_workers=1)
    for name, given in (("f5", {"batch_size": 5, "num_workers": 3}), ("f12", {"batch_size": 12})):
        other = run(tmp_path, real=folders / "a", fake=folders / "b", features_folder=str(tmp_path / name), **given)
        assert other["value"] == one["value"] and other["interval"] == one["interval"]
    assert run(tmp_path, real=folders / "a", fake=tmp_path / "renamed")["value"] == pytest.approx(
        one["value"], rel=1e-9
    )


def test_the_network_gets_batches_of_one_size(tmp_path, folders):
    counting = Counting()
    run(tmp_path, counting.network(), real=folders / "a", fake=folders / "b", batch_size=5)
    assert counting.batches == {5}


def test_nothing_is_computed_twice_but_what_has_changed(tmp_path, folders):
    shutil.copytree(folders / "a", tmp_path / "real")
    first = run(tmp_path, real=tmp_path / "real", fake=folders / "b")
    again = Counting()
    assert run(tmp_path, again.network(), real=tmp_path / "real", fake=folders / "b") == first and again.clips == 0
    shutil.copy(folders / "noise/clip000/0000.png", tmp_path / "real/clip003/0004.png")
    assert run(tmp_path, again.network(), real=tmp_path / "real", fake=folders / "b")["value"] != first["value"]
    assert again.clips == 1
    run(tmp_path, again.network(), real=tmp_path / "real", fake=folders / "b", image_size=8)
    assert again.clips == 25  # another protocol
    run(tmp_path, Network(again, "other weights"), real=tmp_path / "real", fake=folders / "b")
    assert again.clips == 49


def test_a_killed_evaluation_goes_on_and_ends_equal(tmp_path, folders, monkeypatch):
    monkeypatch.setattr(evaluate, "FRAMES_AT_ONCE", 16)
    whole = run(tmp_path, real=folders / "a", fake=folders / "b", features_folder=str(tmp_path / "other"))
    shutil.rmtree(tmp_path / "out")
    stopped = Counting(stop_after=17)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stopped.network(), real=folders / "a", fake=folders / "b")
    assert not (tmp_path / "out").exists()
    rest = Counting()
    assert run(tmp_path, rest.network(), real=folders / "a", fake=folders / "b") == whole
    assert rest.clips == 24 - 17


def test_damaged_features_are_computed_again(tmp_path, folders, caplog):
    first = run(tmp_path, real=folders / "a", fake=folders / "b")
    file = next((tmp_path / "features").glob("*/*.npz"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = Counting()
    assert run(tmp_path, again.network(), real=folders / "a", fake=folders / "b") == first
    assert again.clips in (4, 8) and "is damaged, and its clips are computed again" in caplog.text


def test_one_broken_clip_of_many_is_left_out_named_and_counted(tmp_path, folders, caplog):
    shutil.copytree(folders / "b", tmp_path / "fake")
    (tmp_path / "fake/clip007/0003.png").write_bytes(b"no image")
    result = run(tmp_path, real=folders / "a", fake=tmp_path / "fake")
    assert (result["fake"]["clips"], result["fake"]["broken"], result["real"]["broken"]) == (11, 1, 0)
    assert "clip007/0003.png" in result["fake"]["broken_first"][0]
    assert any("1 videos of fake are broken" in note and "clip007" in note for note in result["notes"])
    with pytest.raises(UserError, match=r"1 of 12 videos of fake cannot be used, .*clip007.*max_bad_fraction 0.05"):
        run(tmp_path, real=folders / "a", fake=tmp_path / "fake", max_bad_fraction=0.05)
    shutil.copy(folders / "b/clip007/0003.png", tmp_path / "fake/clip007/0003.png")  # mended, so it counts again
    assert run(tmp_path, real=folders / "a", fake=tmp_path / "fake")["fake"]["clips"] == 12


def test_a_broken_clip_is_replaced_by_one_that_was_not_drawn(tmp_path, folders):
    shutil.copytree(folders / "b", tmp_path / "fake")
    drawn = evaluate.drawn([f"clip{k:03d}" for k in range(12)], 0)
    (tmp_path / "fake" / drawn[2] / "0003.png").write_bytes(b"no image")
    counting = Counting()
    result = run(
        tmp_path,
        counting.network(),
        real=folders / "a",
        fake=tmp_path / "fake",
        metrics=["fvd6_16f"],
        max_bad_fraction=0.2,
    )
    assert result["fake"]["clips"] == result["real"]["clips"] == 6 and counting.clips == 12


def test_short_clips_and_too_few_are_told_and_counted(tmp_path, folders):
    shutil.copytree(folders / "a", tmp_path / "real")
    for number in (2, 5):
        (tmp_path / f"real/clip{number:03d}/0015.png").unlink()
    result = run(tmp_path, real=tmp_path / "real", fake=folders / "b", metrics=["fvd100_16f"])
    assert (result["real"]["short"], result["real"]["clips"], result["real"]["asked"]) == (2, 10, 100)
    said = " ".join(result["notes"])
    assert "real has 10 usable clips, fewer than the 100 of fvd100_16f" in said
    assert "2 of the videos of real that were opened are too short" in said and "compare it only with" in said
    with pytest.raises(UserError, match="real has 0 usable clips in 12 videos: 12 are shorter than 48 frames"):
        run(tmp_path, real=tmp_path / "real", fake=folders / "b", real_stride=3)


def test_clips_of_two_sizes_are_brought_to_one_and_told(tmp_path, folders):
    shutil.copytree(folders / "b", tmp_path / "fake")
    shutil.rmtree(tmp_path / "fake/clip011")
    make_folder(tmp_path / "fake", 1, size=24, name="clip011")
    result = run(tmp_path, real=folders / "a", fake=tmp_path / "fake")
    assert result["fake"]["sizes"] == {"16 x 16": 11, "24 x 24": 1} and result["image_size"] == 16
    assert any("fake has videos of 2 sizes (11 of 16 x 16, 1 of 24 x 24)" in note for note in result["notes"])


def test_features_that_are_not_finite_stop_it(tmp_path, folders):
    with pytest.raises(UserError, match="not finite; check the weights"):
        run(tmp_path, Network(lambda clips: describe(clips) * np.nan, "bad"), real=folders / "a", fake=folders / "b")


def test_a_dry_run_says_what_is_cached_and_how_long_it_takes_and_writes_nothing(tmp_path, folders):
    cfg = options(tmp_path, real=folders / "a", fake=folders / "b", metrics=["fvd8_16f"])
    said = evaluate.dry_run(cfg, NETWORK)
    assert "8 of 12 folders of frames" in said and "the features of 0 are in" in said and "minutes" in said
    assert not (tmp_path / "features").exists() and not (tmp_path / "out").exists()
    evaluate.run(cfg, NETWORK)
    assert "the features of 8 are in" in evaluate.dry_run(cfg, NETWORK)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "real is null, but must be the folder of the real videos"),
        (["--real", "x"], "fake is null, but must be the folder of the generated videos"),
        (["--real", "x", "--fake", "y", "--run", "z"], 'fake is "y", but must be null'),
        (["--real", "x", "--fake", "y", "--metrics", "fid50k"], "different names like fvd2048_16f"),
        (["--real", "x", "--fake", "y", "--metrics", "fvd2048_4f"], "9 frames or more"),
        (["--real", "x", "--fake", "y", "--bootstrap", "1"], "bootstrap is 1"),
    ],
)
def test_options_that_contradict_each_other_are_told(words, said):
    with pytest.raises(UserError, match=said):
        parse_config(EvaluateConfig, words)


def test_missing_weights_are_told_with_the_command_that_gets_them(tmp_path, folders, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"is missing; run `latte evaluate --fetch_i3d` once") as told:
        main(["--real", str(folders / "a"), "--fake", str(folders / "b"), "--device_target", "CPU"])
    assert "\n" not in str(told.value) and not any(tmp_path.iterdir())


def test_the_command_prints_a_line_for_each_metric(tmp_path, folders, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "load_network", lambda path: NETWORK)
    words = ["--real", folders / "a", "--fake", folders / "b", "--real_stride", "1", "--bootstrap", "0"]
    words += ["--metrics", "fvd12_16f", "fvd6_9f", "--output_path", tmp_path / "out", "--device_target", "CPU"]
    main([*map(str, words), "--features_folder", str(tmp_path / "features")])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("fvd12_16f: ") and first.endswith("of 12 real and 12 generated clips")
    assert second.startswith("fvd6_9f: ") and second.endswith("of 6 real and 6 generated clips")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b-fvd12_16f.json", "b-fvd6_9f.json"}


RANK = """
import sys
from support.clips import NETWORK
from latte.commands.evaluate import main
from latte.config import EvaluateConfig, parse_config
from latte.evaluation import evaluate
from latte.errors import run_main
from latte.runtime import device, ranks

evaluate.FRAMES_AT_ONCE = 16  # so that there is work for all

def main():
    cfg = parse_config(EvaluateConfig, sys.argv[1:])
    here = device.init_device("CPU", use_parallel=True)
    with ranks.ending_together(here.world_size):
        for result in evaluate.run(cfg, NETWORK):
            print(result["value"], here.rank)

run_main(main)
"""


@pytest.mark.slow
def test_ranks_share_the_clips_and_the_distance_is_the_same(tmp_path, folders):
    (tmp_path / "rank.py").write_text(RANK)
    words = ["--real", folders / "a", "--fake", folders / "b", "--metrics", "fvd12_16f", "--real_stride", "1"]
    words += ["--bootstrap", "0", "--features_folder", tmp_path / "shared", "--output_path", tmp_path / "out"]
    mpirun = Path(sys.executable).with_name("mpirun")  # beside Python
    launch = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
    command, paths = [*launch, tmp_path / "rank.py", *words], {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = run(tmp_path, real=folders / "a", fake=folders / "b", bootstrap=0)
    assert done.stdout.split() == [str(one["value"]), "0"]
