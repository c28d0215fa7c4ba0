"""Which of several processes this one is, as its launcher says, and how they find each other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import mindspore as ms
from mindspore import communication

from latte.errors import UserError

LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("RANK_ID", "RANK_SIZE", "DEVICE_ID"),  # of a rank table; msrun sets these too
    ("MS_NODE_ID", "MS_WORKER_NUM", "MS_NODE_ID"),
)
BACKENDS = {"Ascend": "hccl", "GPU": "nccl", "CPU": "mccl"}
PATIENCE = timedelta(minutes=10)  # until the last rank has started


def read_ranks() -> tuple[int, int, int]:
    """Return (rank, number of ranks, rank on this machine) as the launcher put them into the environment.

    Raises UserError if no launcher did, or they are no numbers, or the rank is not below the number of ranks.
    """
    for names in LAUNCHERS:
        if all(name in os.environ for name in names):
            values = [os.environ[name] for name in names]
            if not all(value.isdecimal() for value in values):
                raise UserError(f"{', '.join(names)} must be numbers; the launcher set {', '.join(values)}")
            rank, size, local = map(int, values)
            if rank >= size:
                raise UserError(f"{names[0]} is {rank}, but must be below {names[1]}, which is {size}")
            return rank, size, local
    raise UserError("use_parallel is on but no launcher was found; start with `mpirun -n N python ...` or msrun")


def serve_if_scheduler(connects: bool) -> None:
    """End the process if it is msrun's scheduler, once the ranks have left; otherwise return at once.

    msrun starts the program once more than there are ranks, so that they can meet there; that one has no rank.
    """
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        return
    if connects and int(os.environ["MS_WORKER_NUM"]) > 1:
        ms.set_device("CPU")
        communication.init()
    raise SystemExit(0)


def connect(target: str) -> None:
    """Join the group of all ranks, so that compiled graphs can add up over them.

    Raises UserError if the others cannot be reached.
    """
    try:
        # MindSpore 2.10 does not recognise the mpirun of Open MPI 5, on no device.
        if "OMPI_COMM_WORLD_RANK" in os.environ and "MS_ROLE" not in os.environ:
            _meet_under_mpirun(target)
        else:
            communication.init()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the ranks could not be connected: {reason}; see the logs of the other ranks") from error


def _meet_under_mpirun(target: str) -> None:
    """Use MPI only to tell everybody where rank 0 listens; then MindSpore's own store needs no scheduler process."""
    from mindspore.communication.management import _init_with_store  # its public form is for Ascend only
    from mindspore.mint.distributed import TCPStore
    from mpi4py import MPI

    rank, world_size, _ = read_ranks()
    host, port = MPI.COMM_WORLD.bcast((_own_address(world_size), _free_port()) if rank == 0 else None, root=0)
    # Now, because at its exit a failing rank would wait in there for the others, and they in a sum for it.
    MPI.Finalize()
    store = TCPStore(host, port, world_size, rank == 0, PATIENCE)
    _init_with_store(BACKENDS[target], PATIENCE, world_size, rank, store)


def _own_address(world_size: int) -> str:
    """Return the address by which the other ranks reach this machine."""
    if int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", world_size)) == world_size:
        return "127.0.0.1"
    return socket.gethostbyname(socket.gethostname())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
