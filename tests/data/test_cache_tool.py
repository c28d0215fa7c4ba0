"""The cache tool as a program: ranks, kill -9, a very long video, a full disk, bad options."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.cache import SMALL, TYPES, content, options, write_clip
from support.golden_values import ROOT

from latte.config import TrainConfig
from latte.data.cache import read_cache
from latte.data.dataset import VideoDataset
from latte.data.loader import TrainingSource, make_loader
from latte.io.video import save_mp4
from latte.training.cache_maker import make_cache, verify_cache


def command(videos, folder, **others):
    cfg = {**SMALL, "data_folder": videos, "cache_folder": folder, **others}
    return [sys.executable, ROOT / "tools" / "embedding_cache.py", *[f"--{key}={value}" for key, value in cfg.items()]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_one_rank_two_ranks_and_killed_are_equal(kind, tmp_path):
    for number in range(12):
        write_clip(tmp_path / "frames" / f"c{number:02d}", 60, number)
    cfg = {"cache_file_type": kind, "device_target": "CPU"}
    done = subprocess.run(command(tmp_path / "frames", tmp_path / "one", **cfg), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = content(tmp_path / "one")
    mpirun = [f"{Path(sys.executable).parent}/mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    arguments = command(tmp_path / "frames", tmp_path / "two", **cfg, use_parallel=True)
    done = subprocess.run([*mpirun, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "two") == expected
    arguments = command(tmp_path / "frames", tmp_path / "cut", **cfg)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "cut").glob("0*"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0 and "Start Video Index: 0." not in done.stdout, done.stderr
    assert content(tmp_path / "cut") == expected
    done = subprocess.run([*arguments, "--verify"], capture_output=True, text=True)
    assert done.returncode == 0 and "are whole; 0 videos failed, 0 are missing" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_a_video_of_ten_thousand_frames(kind, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "videos").mkdir()
    save_mp4(np.tile(pixels, (100, 1, 1, 1)), tmp_path / "videos" / "long.mp4")
    cfg = options(tmp_path / "videos", tmp_path / "c", data_layout="video_files", cache_file_type=kind, vae_slice=100)
    assert make_cache(cfg).failed == 0
    cache = read_cache(tmp_path / "c")
    assert cache.entries[0].frames == 10_000
    source = TrainingSource(VideoDataset(cache.index(), 128, cache, TrainConfig(), 0), (128, 4, 8, 8), 0)
    for x, *_ in make_loader(source, 1, 0, 4, 0, 1, 1).create_tuple_iterator(num_epochs=1, output_numpy=True):
        assert x.shape == (1, 128, 8, 8, 8) and np.isfinite(x).all()


def test_bad_options_are_one_sentence(tmp_path):
    done = subprocess.run(command(tmp_path, tmp_path / "c", cache_file_type="zip"), capture_output=True, text=True)
    assert done.returncode == 2 and "cache_file_type is" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind, size", [("numpy", "300k"), ("mindrecord", "10500k")])
def test_a_full_disk_ends_clearly_and_the_rest_is_made_later(kind, size, tmp_path):
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path / "disk"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        for number in range(12):
            write_clip(tmp_path / "frames" / f"c{number:02d}", 50, number)
        arguments = command(tmp_path / "frames", tmp_path / "disk" / "c", cache_file_type=kind)
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert re.search(r"error: cannot write .*: No (space left on device|free disk to be used)", done.stderr)
        cache = read_cache(tmp_path / "disk" / "c")
        assert 1 <= len(cache.entries) < 12
        verify_cache(str(cache.folder))
        clip = cache.open(cache.index().records[0])
        assert len(clip.read(np.arange(clip.length), False)) == 50
        subprocess.run(["mount", "-o", "remount,size=200m", tmp_path / "disk"], check=True)
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0 and "Start Video Index: 0." not in done.stdout
        make_cache(options(tmp_path / "frames", tmp_path / "whole", cache_file_type=kind))
        assert content(tmp_path / "disk" / "c") == content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)  # a file may still be mapped
