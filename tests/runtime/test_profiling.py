"""Traces of steps: which ones, what is read from them, and the table."""

import logging
import math

import mindspore as ms
import numpy as np
import pytest

from latte.config import SampleConfig, TrainConfig, parse_config
from latte.config.parser import OptionError
from latte.errors import UserError
from latte.runtime import profiling
from latte.runtime.profiling import Profile, read_operations

# Of each device, the first lines of a file as MindSpore writes it.
FILES = {
    "ASCEND_PROFILER_OUTPUT/op_statistic.csv": "Device_id,OP Type,Core Type,Count,Total Time(us),Min Time(us)\n"
    "0,MatMulV2,AI_CORE,3,600,100\n0,Cast,AI_VECTOR_CORE,10,200,10\n",
    "ASCEND_PROFILER_OUTPUT/kernel_details.csv": "Step ID,Name,Type,Accelerator Core,Start Time(us),Duration(us)\n"
    "1,a,MatMulV2,AI_CORE,1,200\n1,b,MatMulV2,AI_CORE,2,300\n1,c,MatMulV2,AI_CORE,3,100\n"
    + "1,d,Cast,AI_VECTOR_CORE,4,20\n"
    * 10,
    "gpu_op_type_info_0.csv": "op_type,type_occurrences,total_time(us),total_proportion,avg_time(us)\n"
    "Cast,10,200,0.25,20\nMatMulV2,3,600,0.75,200\n",
    "FRAMEWORK/cpu_op_type_info_0.csv": "op_type,type_occurrences,execution_frequency(per-step),total_compute_time,"
    "avg_time(ms),percent\nMatMulV2,3,1,0.6,0.2,75\nCast,10,1,0.2,0.02,25\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_times_of_operations_are_read_from_the_files_of_each_device(name, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FILES[name])
    first, second = read_operations(tmp_path)
    assert (first.name, first.calls, second.name, second.calls) == ("MatMulV2", 3, "Cast", 10)
    assert math.isclose(first.seconds, 6e-4) and math.isclose(second.seconds, 2e-4) and math.isclose(first.share, 0.75)


@pytest.mark.parametrize("value", ["0:3", "3:2", "3", "a:b", "1:2:3", "-1:2", "1:9999999999"])
@pytest.mark.parametrize("config", [TrainConfig, SampleConfig])
def test_a_span_that_is_none_is_refused(config, value):
    with pytest.raises(OptionError, match="but must be FROM:TO"):
        parse_config(config, [f"--profile={value}"])


def test_a_span_behind_the_last_step_is_refused():
    with pytest.raises(UserError, match="profile is 7:9, but the last step is 6; let FROM be at most 6"):
        profiling.check_span((7, 9), 6)
    profiling.check_span((6, 9), 6)
    profiling.check_span(None, 6)


def test_steps_are_traced_and_the_table_is_written(tmp_path, caplog):
    """Of ten steps with five products each, three are traced; what comes before and after is not."""
    x = ms.Tensor(np.ones((64, 64), np.float32))
    profile = Profile((4, 6), tmp_path)
    with caplog.at_level(logging.INFO, "latte"):
        for step in range(10):
            profile.begin(step)
            for _ in range(5):
                ms.ops.matmul(x, x).asnumpy()
            profile.done(step + 1)
            ms.ops.matmul(x, x).asnumpy()  # a save, which is traced between two steps only
        profile.close()
    (trace,) = (tmp_path / "profile").glob("rank0_*_ascend_ms")  # the form that MindStudio Insight reads
    assert (trace / "ASCEND_PROFILER_OUTPUT" / "trace_view.json").stat().st_size
    rows = (tmp_path / "profile" / "operations-rank0.csv").read_text().splitlines()
    assert rows[0] == "name,calls,seconds,share"
    assert "MatMul,17," in "\n".join(rows)
    assert caplog.text.count("traced steps 4 to 6, ") == 1 and "operation  " in caplog.text


def test_steps_that_a_device_takes_together_are_traced_together(tmp_path, caplog):
    profile = Profile((7, 8), tmp_path)
    with caplog.at_level(logging.INFO, "latte"):
        for done in (0, 5, 10):
            profile.begin(done, 5)
            ms.ops.exp(ms.Tensor(np.ones(4, np.float32))).asnumpy()
            profile.done(done + 5)
    assert "traced steps 6 to 10, " in caplog.text


def test_a_run_that_ends_early_has_the_steps_up_to_there(tmp_path, caplog):
    profile = Profile((1, 100), tmp_path)
    with caplog.at_level(logging.INFO, "latte"):
        profile.begin(0)
        ms.ops.exp(ms.Tensor(np.ones(4, np.float32))).asnumpy()
        profile.step()
        profile.close()
    assert "traced steps 1 to 1, " in caplog.text


def test_a_run_that_goes_on_behind_the_first_step_traces_nothing(tmp_path, caplog):
    profile = Profile((3, 5), tmp_path)
    for step in (3, 4, 5, 6):
        profile.begin(step)
        profile.done(step + 1)
    profile.close()
    assert caplog.text.count("profile 3:5 traces nothing, because the run goes on from step 3") == 1
    assert not (tmp_path / "profile").exists()


def test_a_profiler_that_writes_no_times_is_told_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(profiling, "read_operations", lambda trace: [])
    profile = Profile((1, 1), tmp_path)
    profile.begin(0)
    profile.done(1)
    assert "MindSpore's profiler wrote no times of operations to" in caplog.text
