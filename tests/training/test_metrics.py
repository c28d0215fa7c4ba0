"""metrics.csv of a resumed run is the uninterrupted one's; TensorBoard hides what was redone; the plot is drawn."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from latte.training.metrics import (
    COLUMNS,
    OF_BINS,
    Metrics,
    describe,
    describe_losses,
    read_metrics,
    smoothed,
    sparkline,
)

OTHERS = {"videos_per_second": 2.5, "images_per_second": 40.0, "memory_gib": 1.25}


def values(step, scale=1.0):
    numbers = np.random.default_rng(step).random(5) / 3
    names = ("epoch", "loss", "mse", "bound", "grad_norm")
    fixed = {"learning_rate": 1e-4, "loss_scale": scale, "skipped_steps": step // 7}
    return {"step": step, **dict(zip(names, numbers.tolist(), strict=True)), **fixed}


def run(folder, resume_step, steps):
    metrics = Metrics(folder, resume_step)
    for step in steps:
        metrics.write(values(step), OTHERS)
    metrics.close()
    return metrics


def events(folder):
    """Yield the events of all files of TensorBoard, in order: length, its checksum, event, its checksum."""
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


@pytest.mark.parametrize("torn", [b"", b"41,0.12", b"41,0.1,0.2,0.3,0.4,0.5,0.0001,1.0,0"])
def test_a_resumed_run_has_the_file_of_an_uninterrupted_one(torn, tmp_path):
    whole = run(tmp_path / "whole", 0, range(1, 61)).file.read_bytes()
    cut = run(tmp_path / "cut", 0, range(1, 41)).file
    with cut.open("ab") as file:
        file.write(torn)  # the process was killed in a row
    run(tmp_path / "cut", 25, range(26, 61))
    assert cut.read_bytes() == whole


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path):
    run(tmp_path / "cut", 0, range(1, 9))
    run(tmp_path / "cut", 0, range(1, 13))
    assert (tmp_path / "cut/metrics.csv").read_bytes() == run(tmp_path / "whole", 0, range(1, 13)).file.read_bytes()


def test_numbers_are_exact_and_there_are_no_times(tmp_path):
    file = run(tmp_path, 0, [3]).file
    ((row,), _) = read_metrics(file)
    assert tuple(row) == COLUMNS and {name: float(text) for name, text in row.items()} == values(3)
    assert not set(COLUMNS) & set(OTHERS) and not any("time" in name for name in COLUMNS)


def test_a_row_is_in_the_file_at_once(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.write(values(1), OTHERS)
    assert len(read_metrics(metrics.file)[0]) == 1
    metrics.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"\n5,", b"\na,b,c,d,e,f,g,h,i\n5,"),
        lambda data: data.replace(b"\n5,", b"\n4,1,x,1,1,1,1,1,1\n5,"),
        lambda data: data.replace(b"\n5,", b"\n\xff\xfe\x00\n5,"),
        lambda data: data.replace(b"\n5,", b"\n1,1,1,1,1,1,1,1,1\n,\n5,"),
        lambda data: data.replace(b"\n5,", b"\n" + b"9" * 5000 + b",1,1,1,1,1,1,1,1\n5,"),
        lambda data: data.replace(b"epoch", b"epo\x00h"),
        lambda data: data[data.index(b"\n") + 1 :],
    ],
    ids=["text", "word", "no UTF-8", "out of order", "a huge step", "columns", "no columns"],
)
def test_damaged_rows_are_left_out_and_the_file_is_kept_beside(damage, tmp_path, caplog):
    whole = run(tmp_path / "whole", 0, range(1, 21)).file.read_bytes()
    file = run(tmp_path / "cut", 0, range(1, 21)).file
    damaged = damage(whole)
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING, "latte"):
        run(tmp_path / "cut", 10, range(11, 21))
    assert file.read_bytes() == whole and "the file as it was is metrics-before-step-00000010.csv" in caplog.text
    assert (tmp_path / "cut/metrics-before-step-00000010.csv").read_bytes() == damaged


@pytest.mark.parametrize("text", ["", "step,loss\n1,2\n", None])
def test_another_file_or_none_of_that_name_ends_no_run(text, tmp_path):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    rows, _ = read_metrics(run(tmp_path, 4, [5]).file)
    assert [row["step"] for row in rows] == ["5"]
    aside = tmp_path / "metrics-before-step-00000004.csv"
    assert aside.read_text() == text if text else not aside.exists()


def test_a_file_with_other_line_ends_is_whole(tmp_path):
    whole = run(tmp_path, 0, range(1, 6)).file
    data = whole.read_bytes()
    whole.write_bytes(data.replace(b"\n", b"\r\n"))
    assert run(tmp_path, 5, []).file.read_bytes() == data


def test_a_file_that_is_removed_while_training_is_begun_anew(tmp_path, caplog):
    metrics = Metrics(tmp_path / "run", 0)
    for step in range(1, 6):
        if step == 3:
            metrics.file.unlink()
            metrics.sync()
            metrics.plot()
        if step == 5:
            shutil.rmtree(tmp_path / "run")
        metrics.write(values(step), OTHERS)
        if step == 4:
            assert [row["step"] for row in read_metrics(metrics.file)[0]] == ["3", "4"]
    metrics.sync()
    metrics.plot()
    metrics.close()
    assert read_metrics(metrics.file) == ([{name: str(values(5)[name]) for name in COLUMNS}], "")
    assert caplog.text.count("was removed or emptied, and is begun anew") == 2


@pytest.mark.parametrize("resume_step", [0, 4])
def test_tensorboard_has_all_numbers_and_hides_what_was_redone(resume_step, tmp_path):
    run(tmp_path, 0, range(1, 7))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.rename(file.with_name("events.out.tfevents.1700000000.host"))  # tensorboardX has one file a second
    run(tmp_path, resume_step, range(resume_step + 1, 9))
    shown = []
    for event in events(tmp_path):
        if event.session_log.status == event.session_log.START:  # what TensorBoard does there
            shown = [(step, name, number) for step, name, number in shown if step < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    wanted = {name: number for name, number in {**values(8), **OTHERS}.items() if name != "step"}
    assert {name: number for step, name, number in shown if step == 8} == pytest.approx(wanted)
    assert [step for step, name, _ in shown if name == "loss"] == list(range(1, 9))


@pytest.mark.parametrize("kind", ["one row", "usual", "loss scale", "not finite", "negative"])
def test_the_plot_is_drawn(kind, tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 2 if kind == "one row" else 60):
        row = values(step, 2.0 ** (step // 20) if kind == "loss scale" else 1.0)
        if kind == "not finite" and step % 9 == 0:
            row |= {"loss": float("nan"), "grad_norm": float("inf")}
        metrics.write(row | ({"bound": -0.1} if kind == "negative" else {}), OTHERS)
    metrics.plot()
    metrics.close()
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (990, 770) and np.asarray(image.convert("L")).std() > 10


def test_no_rows_give_no_plot(tmp_path):
    metrics = Metrics(tmp_path, 0)
    metrics.plot()
    metrics.close()
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_keeps_a_constant_and_quiets_noise():
    assert np.allclose(smoothed(np.full(100, 3.0)), 3)
    noise = np.random.default_rng(0).standard_normal(1000)
    assert smoothed(noise).std() < 0.25 and smoothed(noise).shape == (1000,)
    assert np.array_equal(smoothed(noise[:5]), noise[:5])


def test_a_line_for_the_log_names_everything():
    line = describe(values(70), OTHERS)
    for part in (
        "step 70, epoch 0.",
        "loss 0.",
        "(mean squared error 0.",
        "VLB term 0.",
        "gradient norm 0.",
        "learning rate 0.0001",
        "2.5 videos per second, 40 images per second, peak memory 1.25 GiB",
    ):
        assert part in line


def test_bars_show_the_course_of_values():
    assert sparkline(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.arange(1000.0, 0, -1), 4) == "█▆▃▁"
    assert sparkline(np.array([2.0, 2.0])) == "▁▁"
    assert sparkline(np.array([1.0, np.nan, 2.0])) == "▁ █" and sparkline(np.array([np.inf, np.nan])) == "  "


def test_the_course_of_the_loss_is_told_from_two_rows_on():
    rows = [{"step": "20", "loss": "0.9"}, {"step": "40", "loss": "0.25"}]
    assert describe_losses(rows) == "loss █▁ 0.9 at step 20, 0.25 at step 40"
    assert describe_losses(rows[:1]) == describe_losses([]) == ""


def test_tensorboard_has_samples_and_the_loss_by_timestep(tmp_path):
    metrics = Metrics(tmp_path, 0, evaluates=True)
    gif = tmp_path / "step-00000003.gif"
    Image.new("RGB", (6, 4)).save(gif)
    means = {name: 1.0 / (k + 1) for k, name in enumerate(OF_BINS)}
    metrics.write_evaluation({"step": 3, "loss": 1.0, "mse": 0.9, "bound": 0.1, **means})
    metrics.show_samples(gif, (2, 4, 6, 3), 3)
    metrics.close()
    found = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    step, histogram = found["held_out/loss_by_timestep"]
    assert step == 3 and list(histogram.histo.bucket) == list(means.values())
    assert list(histogram.histo.bucket_limit) == [99 + 100 * k for k in range(10)]
    step, image = found["samples"]
    assert step == 3 and image.image.encoded_image_string == gif.read_bytes()
    assert (image.image.height, image.image.width) == (4, 6)


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path):
    metrics = Metrics(tmp_path, 0, tensorboard=False)
    metrics.write(values(1), OTHERS)
    metrics.close()
    assert not (tmp_path / "tensorboard").exists() and len(metrics.table.rows) == 1
