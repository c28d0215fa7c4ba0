"""Jobs of a real Slurm with one node, started here from Debian's packages slurmctld, slurmd, slurm-client and munge."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from support.golden_values import ROOT
from support.runs import state, words, write_clips

from latte.runtime.ranks import _free_port

pytestmark = pytest.mark.slow
if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]:
    pytest.skip(f"needs {', '.join(missing)}", allow_module_level=True)
if os.geteuid():
    pytest.skip("needs root, to start the daemons of Slurm", allow_module_level=True)

CONFIG = """
ClusterName=test
SlurmctldHost=localhost
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=120
MailProg=/bin/true
NodeName=localhost CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
LONG_RUN = {"max_steps": 40, "ckpt_save_interval": 1000, "sample_videos": 0, "train_batch_size": 2, "log_interval": 1}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Start the daemons, and return the environment of what talks to them."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    ports = _free_port(), _free_port()
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, ports=ports))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    files = {"socket": "sock", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = ["munged", "--foreground", "--force", *(f"--{name}={folder}/munge.{end}" for name, end in files.items())]
    daemons = []
    for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]):
        daemons.append(subprocess.Popen(command, env=environment, stdout=-3, stderr=-3))
        wait_until(daemons, lambda: (folder / "munge.sock").exists())
    wait_until(daemons, lambda: "idle" in said(environment, "sinfo"))
    yield environment
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait(30)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


def said(environment, *command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout + done.stderr


def wait_until(daemons, reached, seconds=60):
    end = time.time() + seconds
    while not reached():
        assert time.time() < end and all(daemon.poll() is None for daemon in daemons)
        time.sleep(0.1)


class Job:
    """A job of two tasks, and its log."""

    def __init__(self, environment, log, *command):
        self.environment, self.log = environment, log
        given = ["sbatch", "--parsable", "--ntasks-per-node=2", f"--output={log}", *map(str, command)]
        self.number = said(environment, *given).strip()
        assert self.number.isdecimal(), self.number

    def text(self):
        return self.log.read_text() if self.log.exists() else ""

    def is_in_state(self, *states):
        return any(
            f"JobState={name}" in said(self.environment, "scontrol", "show", "job", self.number) for name in states
        )

    def begin_again(self):
        """Wait until it is in the queue again, and begin soon: Slurm lets a job wait for two minutes there.

        In the second in which it was ended, its right to run is still taken back ("Job credential revoked").
        """
        wait_until((), lambda: self.is_in_state("PENDING"), 180)
        said(self.environment, "scontrol", "update", f"JobId={self.number}", "StartTime=now+3")

    def end(self):
        """Wait for its end, and return the exit code."""
        wait_until((), lambda: self.is_in_state("COMPLETED", "FAILED", "CANCELLED"), 300)
        shown = said(self.environment, "scontrol", "show", "job", self.number)
        return int(shown.split("ExitCode=")[1].split(":")[0])


def rows(output):
    return sum(len(path.read_text().splitlines()) for path in output.glob("*/metrics.csv"))


def small_config(folder, **options):
    given = [word.removeprefix("--").replace("=", ": ", 1) for word in words(**options)]
    (folder / "small.yaml").write_text("\n".join(given))
    return folder / "small.yaml"


def test_a_preempted_job_goes_on_to_equal_weights(slurm, clips, tmp_path):
    config = small_config(tmp_path, data_folder=clips, device_target="CPU", **LONG_RUN)
    train = ("scripts/slurm/train.slurm", config, "--output_path")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Job(slurm, tmp_path / "whole.log", *train, whole).end() == 0
    job, expected = Job(slurm, tmp_path / "cut.log", *train, cut), 3
    stops = ("scontrol", "requeue"), ("scancel", "--batch", "--signal=USR1")  # preemption, and nearly the time limit
    for stop in stops:
        wait_until((), lambda expected=expected: rows(cut) >= expected, 180)
        said(slurm, *stop, job.number)
        job.begin_again()
        expected = rows(cut) + 3
    code, text = job.end(), job.text()
    print(text)
    assert code == 0, text[-5000:]
    assert "start 3: 2 ranks" in text and "1: stopped by SIGTERM at step" in text and "time is nearly up" in text
    assert text.count("continue with --resume auto") == 4  # both ranks, twice
    assert len(list(cut.iterdir())) == 1
    one, other = state(whole, 40), state(cut, 40)
    assert set(one) == set(other)
    for name, values in one.items():
        assert np.array_equal(values, other[name]), name


def test_ranks_of_a_job_share_the_videos(slurm, tmp_path):
    options = ("--num_samples=2", "--sampling_steps=2", "--device_target=CPU", f"--output_path={tmp_path / 'out'}")
    job = Job(slurm, tmp_path / "sample.log", "scripts/slurm/sample.slurm", "demo", *options)
    assert job.end() == 0, job.text()
    files = list((tmp_path / "out").glob("*.mp4"))
    assert len(files) == 2
    for rank in (0, 1):
        assert any(f"{rank}: {file}" in job.text() for file in files)


@pytest.mark.parametrize("arguments, said", [((), "usage: sbatch"), (("missing.yaml",), "missing.yaml")])
def test_a_job_that_cannot_start_ends_with_a_sentence(arguments, said, slurm, tmp_path):
    job = Job(slurm, tmp_path / "bad.log", "scripts/slurm/train.slurm", *arguments)
    assert job.end() == 2 and "error: " in job.text() and said in job.text()
