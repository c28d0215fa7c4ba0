"""Checkpoints outlive a kill at any moment, a damaged file and a full disk; what is kept and what goes."""

import contextlib
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from support.golden_values import tiny

from latte import load_model
from latte.errors import UserError
from latte.io.atomic import LOCK
from latte.training import checkpoints
from latte.training.checkpoints import Checkpoints
from latte.weights import safetensors_file

METADATA = {"step": "0", "world_size": "1"}
SAVE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from latte.training.checkpoints import Checkpoints
folder = Checkpoints(Path(sys.argv[1]), keep_last=2)
step = (folder.newest() or 0) + 1
while True:
    state = {f"w{i}": np.full(200_000, step, np.float32) for i in range(8)}
    folder.save(step, state, {"w": state["w0"]}, {"step": str(step)})
    if step % 5 == 1:
        print(step, flush=True)
    step += 1
"""


def arrays(step):
    return {"net.w": np.full((4, 5), step, np.float32), "step": np.array(step, np.int32)}


def save(folder, *steps, **options):
    made = Checkpoints(folder, **options)
    for step in steps:
        made.save(step, arrays(step), {"w": arrays(step)["net.w"]}, METADATA | {"step": str(step)})
    return made


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    made = save(tmp_path / "ckpt", 7)
    state, metadata = made.load(7)
    assert made.newest() == 7 and metadata["step"] == "7"
    assert {name: (array.dtype, array.shape) for name, array in state.items()} == {
        "net.w": (np.float32, (4, 5)),
        "step": (np.int32, ()),
    }
    assert all(np.array_equal(state[name], array) for name, array in arrays(7).items())


def test_weights_become_a_network(tmp_path):
    net = tiny("class")
    weights = {name: weight.asnumpy() for name, weight in net.parameters_and_names()}
    config = {key: getattr(net.config, key) for key in net.config.__dataclass_fields__}
    file = Checkpoints(tmp_path).save(3, arrays(3), weights, METADATA | {"config": json.dumps(config)}, "model")
    assert file.name == "model-00000003.ckpt"
    again = load_model(file)
    assert again.config == net.config
    for name, weight in again.parameters_and_names():
        assert np.array_equal(weight.asnumpy(), weights[name]), name


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path).newest() is None and Checkpoints(tmp_path / "none").newest() is None


def test_weights_without_a_state_are_no_checkpoint(tmp_path):
    made = save(tmp_path, 1, 2)
    (tmp_path / "state-00000002.safetensors").unlink()
    assert made.newest() == 1


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_damaged_newest_falls_back_to_the_one_before(left, tmp_path, caplog):
    made = save(tmp_path, 1, 2)
    file = tmp_path / "state-00000002.safetensors"
    os.truncate(file, left % file.stat().st_size)
    with caplog.at_level(logging.WARNING, "latte"):
        assert made.newest() == 1
    assert "state-00000002" in caplog.text and "the checkpoint before it is taken" in caplog.text


def test_a_flipped_bit_anywhere_in_a_state_is_found(tmp_path, monkeypatch):
    made = save(tmp_path, 1, 2)
    file = tmp_path / "state-00000002.safetensors"
    whole = file.read_bytes()
    rng = np.random.default_rng()
    spaces = whole.rindex(b"}") + 1, 8 + int.from_bytes(whole[:8], "little")  # which fill up the header: no matter
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        if not spaces[0] <= place < spaces[1]:
            assert made.newest() == 1, (place, data[place], whole[place])


def test_a_state_under_the_name_of_another_step_is_damaged(tmp_path, caplog):
    made = save(tmp_path, 1, 2)
    shutil.copy(tmp_path / "state-00000001.safetensors", tmp_path / "state-00000003.safetensors")
    with caplog.at_level(logging.WARNING, "latte"):
        assert made.newest() == 2
    assert "state-00000003.safetensors holds step 1; the checkpoint before it is taken" in caplog.text


def test_without_one_whole_state_there_is_none_to_go_on_from(tmp_path, caplog):
    made = save(tmp_path, 1, 2)
    for file in tmp_path.glob("state-*"):
        os.truncate(file, 30)
    with pytest.raises(UserError, match=r"holds no state that can be resumed from \(.*state-00000002.*damaged"):
        made.newest()
    assert not caplog.text


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_kill_between_two_removals_leaves_nothing_for_ever(call, tmp_path, monkeypatch):
    save(tmp_path, 2, 4, keep_last=2)
    calls = []

    def unlink(path, **options):
        calls.append(path)
        if len(calls) > call:
            raise KeyboardInterrupt
        remove(path, **options)

    remove = type(tmp_path).unlink
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", unlink)
        with contextlib.suppress(KeyboardInterrupt):
            save(tmp_path, 6, keep_last=2)
    for file in tmp_path.glob(".*"):
        file.unlink()
    save(tmp_path, 6, 8, 10, keep_last=2)
    assert names(tmp_path) == sorted(
        f"{kind}-000000{step}.{end}"
        for kind, end in (("ema", "ckpt"), ("state", "safetensors"))
        for step in ("08", "10")
    )


def test_old_weights_without_a_state_go_with_the_old_checkpoints(tmp_path):
    save(tmp_path, 2, 4, 6, 8, keep_last=4)
    for step in (2, 4, 6):
        (tmp_path / f"state-{step:08d}.safetensors").unlink()
    save(tmp_path, 10, keep_last=2, keep_every=4)
    assert names(tmp_path)[:3] == ["ema-00000004.ckpt", "ema-00000008.ckpt", "ema-00000010.ckpt"]


def test_the_last_and_the_multiples_are_kept(tmp_path):
    made = save(tmp_path, *range(2, 21, 2), keep_last=2, keep_every=8)
    assert made.steps() == [8, 16, 18, 20]
    kept = [
        f"{kind}-{step:08d}.{end}"
        for kind, end in (("ema", "ckpt"), ("state", "safetensors"))
        for step in (8, 16, 18, 20)
    ]
    assert names(tmp_path) == kept


def test_a_damaged_later_one_displaces_none(tmp_path):
    save(tmp_path, 10, 20, 30, keep_last=3)
    os.truncate(tmp_path / "state-00000030.safetensors", 50)
    made = save(tmp_path, 25, keep_last=1)
    assert made.newest() == 25


def test_what_a_killed_write_left_goes_before_room_is_looked_for_and_other_hidden_files_stay(tmp_path, monkeypatch):
    made = save(tmp_path, 1)
    left = tmp_path / ".state-00000002-0123abcd"
    left.mkdir()
    for name in (LOCK, "state-00000002.safetensors"):
        (left / name).touch()
    (tmp_path / ".nfs0001").touch()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    seen = []
    monkeypatch.setattr(checkpoints, "check_room", lambda *_: seen.append(left.exists()))
    save(tmp_path, 2)
    assert seen == [False] and made.steps() == [1, 2]
    assert [name for name in names(tmp_path) if name.startswith(".")] == [".ipynb_checkpoints", ".nfs0001"]


def test_a_disk_that_is_too_small_is_said_before_writing(tmp_path, monkeypatch):
    made = save(tmp_path, 1, keep_last=1)
    before = names(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 100))
    with pytest.raises(UserError, match=r"has 100 bytes free, but \S+ \w+ are needed; free some space"):
        save(tmp_path, 2, keep_last=1)
    assert names(tmp_path) == before and made.newest() == 1


def test_a_disk_that_fills_up_meanwhile_leaves_the_old_ones(tmp_path, monkeypatch):
    made = save(tmp_path, 1, keep_last=1)

    def full(array):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_file, "raw_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*state-00000002.*: No space left on device"):
        save(tmp_path, 2, keep_last=1)
    assert made.steps() == [1] and made.newest() == 1 and not list(tmp_path.glob(".*"))


def test_the_folder_is_synced_before_old_ones_go(tmp_path, monkeypatch):
    save(tmp_path, 1, keep_last=1)
    seen = []
    monkeypatch.setattr(checkpoints, "sync_folder", lambda folder: seen.append(Checkpoints(folder).steps()))
    save(tmp_path, 2, keep_last=1)
    assert seen == [[1, 2]] and Checkpoints(tmp_path).steps() == [2]


def test_saving_needs_no_second_copy_in_memory(tmp_path):
    big = {"net.w": np.ones(16 << 20, np.float32)}
    made = Checkpoints(tmp_path)
    tracemalloc.start()
    try:
        made.save(1, big, big, METADATA)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 4 << 20, f"{peak >> 20} MiB for 64 MiB"
        tracemalloc.reset_peak()
        state, _ = made.load(1)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20 and state["net.w"][-1] == 1
    finally:
        tracemalloc.stop()


def test_killed_at_any_moment_the_newest_is_whole(tmp_path):
    rng = np.random.default_rng()
    reached = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, tmp_path], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        process.stdout.close()
        made = Checkpoints(tmp_path)
        newest = made.newest()
        assert newest == made.steps()[-1] > reached  # nothing damaged, nothing lost
        state, metadata = made.load(newest)
        assert metadata["step"] == str(newest) and len(state) == 8
        assert all(np.all(array == newest) for array in state.values())
        reached = newest
