"""How ranks are laid out; and on CPU for real: what ranks compute that share frames and halves of guidance."""

import time

import numpy as np
import pytest
from PIL import Image
from support import in_parts, mpi
from support.golden_values import ROOT

from latte.errors import UserError
from latte.runtime import collective, device, layout
from latte.runtime.device import Device

ALL = ("forward", "text", "sampling", "ways", "batched", "int8", "decoding")
LONG = pytest.mark.long  # by hand, and before a release: `pytest tests/runtime -m slow`


def of(rank, world, sequence=1, guidance=1):
    return Device(rank=rank, world_size=world, sequence=sequence, guidance=guidance)


def test_ranks_of_eight_are_data_by_guidance_by_sequence():
    here = of(5, 8, 2, 2)
    assert (here.data_rank, here.data_ranks, here.half, here.part, here.leads) == (1, 2, 0, 1, False)
    found = {kind: layout.members(here, kind) for kind in ("sequence", "guidance", "video")}
    assert found == {"sequence": [4, 5], "guidance": [5, 7], "video": [4, 5, 6, 7]}
    assert [rank for rank in range(8) if of(rank, 8, 2, 2).leads] == [0, 4]
    assert layout.table(here).splitlines() == [
        "8 ranks = 2 data x 2 guidance x 2 sequence",
        "  videos 0 of 2: ranks with condition 0 1, without 2 3",
        "  videos 1 of 2: ranks with condition 4 5, without 6 7",
    ]


@pytest.mark.parametrize("sequence, guidance", [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (8, 1)])
def test_each_rank_is_in_one_group_of_each_kind(sequence, guidance):
    for kind, size in (("sequence", sequence), ("guidance", guidance), ("video", sequence * guidance)):
        groups = [layout.members(of(rank, 8, sequence, guidance), kind) for rank in range(8)]
        for rank, group in enumerate(groups):
            assert len(group) == size and rank in group and all(groups[other] == group for other in group)


@pytest.mark.parametrize(
    "world, sequence, guidance, said",
    [
        (8, 3, 1, "needs a multiple of 3 ranks, and there are 8; take sequence_parallel 2 or 4, or start 6 or 9 ranks"),
        (6, 4, 2, "4 with cfg_parallel needs a multiple of 8 ranks, and there are 6; take sequence_parallel 3, or"),
        (1, 2, 1, "needs a multiple of 2 ranks, and there is 1; take sequence_parallel 1, or start 2 ranks, with use_"),
        (3, 1, 2, "needs a multiple of 2 ranks, and there are 3; start 2 or 4 ranks"),
    ],
)
def test_a_layout_that_does_not_divide_names_the_nearest_that_do(world, sequence, guidance, said):
    with pytest.raises(UserError) as error:
        layout.check(world, sequence, guidance)
    assert said.replace("; start", "; take start") in str(error.value) or said in str(error.value)


def test_alone_a_rank_has_whole_videos():
    with device.use(rank=3, world_size=4, sequence=2, guidance=2), device.alone() as here:
        assert (collective.size("sequence"), collective.size("video"), collective.place("sequence")) == (1, 1, 0)
        assert (here.rank, here.world_size) == (3, 4)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("count, unit", [(17, 1), (2, 1), (16, 1), (7, 3), (17, 14)])
def test_rows_are_shared_without_gaps(ranks, count, unit):
    shares = []
    for rank in range(ranks):
        with device.use(rank=rank, world_size=ranks, sequence=ranks):
            shares.append(collective.share_rows(count, "sequence", unit))
    assert [row for start, stop, _ in shares for row in range(start, stop)] == list(range(count))
    assert all(start % unit == 0 or start == count for start, _, _ in shares)


def compute(folder, ranks, sequence, guidance, *parts):
    """Return what rank 0 has saved."""
    file = folder / f"{ranks}-{sequence}-{guidance}-{'-'.join(parts)}.npz"
    words = ("tests/support/in_parts.py", "CPU", "fp32", file, sequence, guidance, *parts)
    done = mpi.run(*words, ranks=ranks, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    with np.load(file) as found:
        return dict(found)


def differences(found, expected):
    """Return the largest deviation of each result, relative to the largest element; without what was sent."""
    names = [name for name in found if not name.endswith("sent")]
    assert names
    return {name: float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in names}


@pytest.fixture(scope="module")
def one():
    """What one rank computes: this process, a part at a time."""
    made = {}

    def parts(*names):
        for name in names:
            if name not in made:
                made[name] = {key: value.asnumpy() for key, value in getattr(in_parts, name)("fp32")}
        return {key: value for name in names for key, value in made[name].items()}

    return parts


def sent(ranks, depth, videos, frames, patches, width):
    """Return the bytes that a rank sends others: two exchanges per block over frames, all but its own part."""
    shares = [-(-length // ranks) * ranks for length in (frames, patches)]
    return depth * 2 * videos * shares[0] * shares[1] * width * 4 // ranks * (ranks - 1) // ranks


def test_two_ranks_share_five_frames(one, tmp_path):
    found = compute(tmp_path, 2, 2, 1, "forward")
    assert max(differences(found, one("forward")).values()) <= 1e-6
    assert found["forward sent"] == sent(2, 2, 2, 5, 5, 32)


@pytest.mark.slow
@pytest.mark.parametrize("ranks, sequence", [(2, 2), (4, 4)])
def test_ranks_keep_their_rows_where_guidance_ends(ranks, sequence, one, tmp_path):
    """Where images are shared row by row, rows of the conditional half are at other ranks than those of one half."""
    found = compute(tmp_path, ranks, sequence, 1, "batched")
    assert max(differences(found, one("batched")).values()) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks, sequence, guidance",
    [(2, 2, 1), (2, 1, 2), pytest.param(4, 4, 1, marks=LONG), pytest.param(4, 2, 2, marks=LONG)],
)
def test_ranks_compute_what_one_does(ranks, sequence, guidance, one, tmp_path):
    """Latte and LatteT2V, guidance, the ways to skip work, int8, and the autoencoders."""
    found = compute(tmp_path, ranks, sequence, guidance, *ALL)
    assert max(differences(found, one(*ALL)).values()) <= 1e-6
    assert found["forward sent"] == sent(sequence, 2, 2, 5, 5, 32)
    assert found["text sent"] == sent(sequence, 2, 1, 17, 15, 64)


@pytest.mark.slow
@LONG
@pytest.mark.parametrize("ranks, sequence", [(2, 2), (4, 4), (4, 2)])
def test_ten_training_steps_are_those_of_one_rank(ranks, sequence, one, tmp_path):
    """With blocks that are recomputed, and with single images; the first gradients, the losses, the weights."""
    found = compute(tmp_path, ranks, sequence, 1, "training", "joint")
    assert max(differences(found, one("training", "joint")).values()) <= 1e-5


SAMPLE = ("sample.py", "-c", "demo", "--device_target", "CPU", "--output_format", "png")


def sample(*words, ranks=1):
    """Return sample.py when it has ended, started by itself or by mpirun."""
    return mpi.run(*SAMPLE, *words, ranks=ranks, timeout=280)


@pytest.mark.slow
def test_a_layout_that_does_not_divide_ends_each_rank_with_a_sentence(tmp_path):
    out = ("--output_path", tmp_path / "out")
    done = sample("--use_parallel", "--sequence_parallel", "3", *out, ranks=2)
    assert done.returncode == 2
    assert (
        "sequence_parallel 3 needs a multiple of 3 ranks, and there are 2; take sequence_parallel 2, or" in done.stderr
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_ranks_make_the_video_of_one(tmp_path):
    """sample.py with each layout: the same frames, in files that a later start of one rank finds made."""
    words = ["--num_samples", "1", "--sampling_steps", "3", "--guidance_scale", "3", "--class_labels", "1"]
    words += ["--output_path"]

    def make(folder, *more):
        done = sample(*words, tmp_path / folder, *more, ranks=2 if more else 1)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def frames(folder):
        files = sorted((tmp_path / folder).rglob("*.png"))
        return np.stack([np.asarray(Image.open(file)).astype(int) for file in files if file.parent.name != folder])

    make("one")
    for name, more in (("parts", ["--sequence_parallel", "2"]), ("halves", ["--cfg_parallel"])):
        said = make(name, "--use_parallel", *more)
        assert said.count("2 ranks = 1 data x ") == 1
        assert np.abs(frames(name) - frames("one")).max() <= 1
        assert "1 of 1 videos are in" in make(name)


@pytest.mark.slow
def test_a_rank_killed_while_sampling_ends_all_and_leaves_whole_videos(tmp_path):
    words = ["--num_samples", "4", "--class_labels", "1", "--sampling_steps", "20", "--output_path", tmp_path]
    process = mpi.start(*SAMPLE, *words, "--use_parallel", "--sequence_parallel", "2", ranks=2)
    try:
        end = time.time() + 500
        while not (found := images(tmp_path)):
            assert time.time() < end and process.poll() is None
            time.sleep(0.1)
        mpi.kill_a_rank(process, "sample.py")
        done = mpi.ended(process, 30)
    finally:
        process.terminate()
    assert done.returncode != 0 and "signal 9" in done.stdout + done.stderr
    before = {file: np.asarray(Image.open(file)) for file in images(tmp_path)}
    assert len(found) <= len(before) < 4 * 16
    again = sample(*words)
    kept = f"{len({file.parent for file in before})} of 4 videos are in"
    assert again.returncode == 0 and kept in again.stdout, again.stderr[-3000:]
    assert all((np.asarray(Image.open(file)) == image).all() for file, image in before.items())


def images(folder):
    """Return the frames of videos that are finished: what is being written is in hidden folders."""
    return [file for file in folder.rglob("*.png") if not any(part.startswith(".") for part in file.parts)]
