"""Which of several processes this one is, as its launcher says, and how they find each other."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys

from latte.errors import UserError

LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("RANK_ID", "RANK_SIZE", "DEVICE_ID"),  # of a rank table; msrun sets these too
    ("MS_NODE_ID", "MS_WORKER_NUM", "MS_NODE_ID"),
)
_PR_SET_PDEATHSIG = 1
_SCHEDULER = "from mindspore.communication import init; import mindspore as ms; ms.set_device('CPU'); init()"


def serve_if_scheduler(connects: bool) -> None:
    """End this process if it is the one of msrun's that only lets the ranks find each other, after they have."""
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        return
    if connects:
        from mindspore import communication

        communication.init()  # stays until the ranks have gone
    raise SystemExit(0)


def read_ranks() -> tuple[int, int, int]:
    """Return (rank, number of ranks, rank on this machine) as the launcher put them into the environment.

    Raises UserError if no launcher did, or they are no numbers.
    """
    for names in LAUNCHERS:
        if all(name in os.environ for name in names):
            values = [os.environ[name] for name in names]
            if not all(value.isdecimal() for value in values):
                raise UserError(f"{', '.join(names)} must be numbers; the launcher set {', '.join(values)}")
            rank, size, local = map(int, values)
            return rank, size, local
    raise UserError("use_parallel is on but no launcher was found; start with `mpirun -n N python ...` or msrun")


def connect(target: str) -> None:
    """Join the group of all ranks, so that compiled graphs can add up over them.

    On CPU MindSpore's ranks meet at a scheduler. msrun starts one; under mpirun rank 0 does.
    Raises UserError if the others cannot be reached.
    """
    from mindspore import communication

    if target == "CPU" and "OMPI_COMM_WORLD_RANK" in os.environ and "MS_ROLE" not in os.environ:
        _meet_under_mpirun(*read_ranks()[:2])
    try:
        communication.init()
    except RuntimeError as error:
        raise UserError(f"the ranks could not be connected: {str(error).strip().splitlines()[0]}") from error


def _meet_under_mpirun(rank: int, world_size: int) -> None:
    from mpi4py import MPI

    address = ("127.0.0.1", _free_port()) if rank == 0 else None
    if rank == 0 and int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", world_size)) < world_size:
        address = (socket.gethostbyname(socket.gethostname()), address[1])
    host, port = MPI.COMM_WORLD.bcast(address, root=0)
    os.environ.update(MS_WORKER_NUM=str(world_size), MS_SCHED_HOST=host, MS_SCHED_PORT=str(port), MS_NODE_ID=str(rank))
    if rank == 0:
        foreign = ("OMPI_", "PMIX_", "PRTE_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        # It ends with this process, however that ends.
        subprocess.Popen(
            [sys.executable, "-c", _SCHEDULER],
            env=environment | {"MS_ROLE": "MS_SCHED"},
            preexec_fn=_die_with_parent,
            stdout=subprocess.DEVNULL,
        )
    os.environ["MS_ROLE"] = "MS_WORKER"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
