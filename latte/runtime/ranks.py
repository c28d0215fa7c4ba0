"""Which of several processes this one is, as its launcher says, and how they find each other."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latte.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("RANK_ID", "RANK_SIZE", "DEVICE_ID"),  # of a rank table; msrun sets these too
    ("MS_NODE_ID", "MS_WORKER_NUM", "MS_NODE_ID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # of srun; the last, as the others may run in its step
)
BACKENDS = {"CPU": "mccl", "Ascend": "hccl", "GPU": "nccl"}  # MindSpore's names of what carries messages
LOCAL = "127.0.0.1"
FIRST_SLURM_PORT = 20000  # of 10000, below those that Linux gives away; jobs on one node must not meet
MASTER_PORT = 8118  # at which ranks meet, if nothing says another; MindSpore's own
PATIENCE = timedelta(minutes=10)  # until the last rank has started
# On CPU a rank gives up on the others after 30 seconds, in which the first may well be saving or sampling. That one has
# died is seen by the launcher. Seconds.
WAIT_IN_SUMS = ("MS_CPU_COMM_OP_TIMEOUT", "86400")


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
    raise UserError("use_parallel is on but no launcher was found; start with `mpirun -n N python ...`, msrun or srun")


def by_slurm() -> bool:
    """Return whether srun started this rank, and no other launcher inside it did."""
    *others, own = (all(name in os.environ for name in names) for names in LAUNCHERS)
    return own and not any(others)


def serve_if_scheduler(connects: bool, target: str) -> None:
    """End the process if it is msrun's scheduler, once the ranks have left; otherwise return at once.

    msrun starts the program once more than there are ranks, so that they can meet there; that one has no rank.
    """
    if os.environ.get("MS_ROLE") != "MS_SCHED":
        return
    if connects and target != "CPU" and int(os.environ["MS_WORKER_NUM"]) > 1:
        from mindspore import communication

        communication.init()  # stays until the ranks have gone
    raise SystemExit(0)


def connect(target: str) -> None:
    """Join the group of all ranks, so that compiled graphs can add up over them.

    Raises UserError if the others cannot be reached.
    """
    from mindspore import communication
    from mindspore.communication import management

    by_table = "RANK_TABLE_FILE" in os.environ and not {"MS_ROLE", "OMPI_COMM_WORLD_RANK"} & os.environ.keys()
    try:
        if target == "CPU":
            os.environ.setdefault(*WAIT_IN_SUMS)
            with _giving_up_after(PATIENCE):
                _meet(target, _place_on_cpus)
        elif by_slurm():
            _meet(target, _place_in_slurm)
        elif by_table and hasattr(management, "_init_with_store"):
            _meet(target, _place_in_table)
        else:
            communication.init()
    except RuntimeError as error:
        raise UserError(
            f"the ranks could not be connected: {first_line(error)}; see the logs of the other ranks"
        ) from error


def _meet(target: str, place: Callable[[], tuple[str, int]]) -> None:
    """Connect without a scheduler process, at an address and port at which rank 0 listens.

    On CPUs, under mpirun MindSpore starts none, so that `communication.init` fails; and after the death of a rank, the
    one that msrun starts keeps the launcher waiting for half a minute. With a rank table there is none either, and
    in 2.10 `communication.init` refuses ("does not support ranktable startup"), though the rest of it takes the table.
    """
    rank, world_size, _ = read_ranks()
    host, port = place()
    try:
        from mindspore.communication.management import _init_with_store  # its public form is for Ascend only
        from mindspore.mint.distributed import TCPStore
    except ImportError as error:
        raise UserError("this MindSpore cannot connect ranks by itself; install 2.10, or use one rank") from error
    store = TCPStore(host, port, world_size, rank == 0, PATIENCE)
    _init_with_store(BACKENDS[target], PATIENCE, world_size, rank, store)


@contextlib.contextmanager
def _giving_up_after(patience: timedelta) -> Iterator[None]:
    """End the process with a sentence after that time: MPI and MindSpore wait much longer for a missing rank.

    MPI waits for ever, MindSpore's rank 0 for half an hour, and neither can be interrupted.
    """

    def give_up() -> None:
        seconds = patience.total_seconds()
        sys.stderr.write(
            f"error: {read_ranks()[1]} ranks did not all start within {seconds:g} seconds; see the logs of the others\n"
        )
        sys.stderr.flush()
        os._exit(2)

    timer = threading.Timer(patience.total_seconds(), give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _place_on_cpus() -> tuple[str, int]:
    if "MS_SCHED_PORT" in os.environ:
        return os.environ["MS_SCHED_HOST"], int(os.environ["MS_SCHED_PORT"])
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        return _agree_by_mpi(*read_ranks()[:2])
    if by_slurm():
        return _place_in_slurm()
    raise UserError("a rank table is for Ascend devices; start ranks on CPUs with mpirun, msrun or srun")


def _place_in_slurm() -> tuple[str, int]:
    """Return the address of the step's first node, where srun puts rank 0, and MASTER_PORT or one by the job's number.

    Raises UserError if the node has no address.
    """
    nodes, job = os.environ.get("SLURM_STEP_NODELIST", ""), os.environ.get("SLURM_JOB_ID", "")
    # As `scontrol show hostnames` does: the first of "cpu[07-09,12],gpu1" is cpu07.
    first = re.match(r"([^\[,]*)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    name = os.environ.get("MASTER_ADDR") or "".join(filter(None, first.groups() if first else ()))
    port = _master_port(FIRST_SLURM_PORT + int(job) % 10000 if job.isdecimal() else MASTER_PORT)
    try:
        return LOCAL if os.environ.get("SLURM_STEP_NUM_NODES") == "1" else socket.gethostbyname(name), port
    except OSError as error:
        raise UserError(f"the first node of {nodes!r} has no address here: {error}; set MASTER_ADDR") from error


def _master_port(default: int) -> int:
    port = os.environ.get("MASTER_PORT") or str(default)
    if not port.isdecimal():
        raise UserError(f"MASTER_PORT is {port!r}, but must be the number of a free port")
    return int(port)


def _place_in_table() -> tuple[str, int]:
    """Return the address of the machine with rank 0, and MASTER_PORT.

    Raises UserError if the table cannot be read, or names that machine by no address.
    """
    path, port = os.environ["RANK_TABLE_FILE"], _master_port(MASTER_PORT)
    try:
        servers = json.loads(Path(path).read_text(encoding="utf-8"))["server_list"]
        ranks = {device["rank_id"]: server["server_id"] for server in servers for device in server["device"]}
        first = LOCAL if len(servers) == 1 else socket.gethostbyname(ranks["0"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} does not tell the address of rank 0: {error!r}; tools/make_rank_table.py makes a rank table"
        ) from error
    return first, port


def _agree_by_mpi(rank: int, world_size: int) -> tuple[str, int]:
    """Return on every rank the address and port at which rank 0 will listen."""
    _start_mpi()
    from mpi4py import MPI

    one_machine = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(world_size)
    place = (LOCAL if one_machine else own_address(), _free_port()) if rank == 0 else None
    place = MPI.COMM_WORLD.bcast(place, root=0)
    # Now, because at its exit a failing rank would wait in there for the others, and they in a sum for it.
    MPI.Finalize()
    return place


def _start_mpi() -> None:
    """Return when all ranks are there; in an import of mpi4py's MPI no other thread could go on until then."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    if not MPI.Is_initialized():
        ctypes.CDLL(MPI.__file__).MPI_Init(None, None)


class WorkCounter:
    """Numbers from 0 on, each given to one rank of mpirun only, whichever asks first."""

    def __init__(self, world_size: int):
        self._next, self._window = 0, None
        if world_size > 1:
            from mpi4py import MPI

            size = MPI.INT64_T.Get_size()
            self._window = MPI.Win.Allocate(size if MPI.COMM_WORLD.rank == 0 else 0, size, comm=MPI.COMM_WORLD)
            if MPI.COMM_WORLD.rank == 0:
                counter: Any = self._window.tomemory()  # mpi4py's own kind of buffer
                np.frombuffer(counter, np.int64)[:] = 0
            MPI.COMM_WORLD.Barrier()

    def take(self) -> int:
        """Return the next number."""
        if self._window is None:
            self._next += 1
            return self._next - 1
        number, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        self._window.Lock(0)
        self._window.Fetch_and_op(one, number, 0)
        self._window.Unlock(0)
        return int(number[0])


def wait_for_all(world_size: int) -> None:
    """Wait until every rank of mpirun is here."""
    if world_size > 1:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()


@contextlib.contextmanager
def ending_together(world_size: int) -> Iterator[None]:
    """End all ranks of mpirun when this one fails: at its exit it would wait for the others, and they for it."""
    try:
        yield
    except Exception as error:
        if world_size == 1:
            raise
        from mpi4py import MPI

        known = isinstance(error, UserError)
        # Now, as Abort ends the process before anybody else can say why.
        sys.stderr.write(f"error: {error}\n" if known else traceback.format_exc())
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(2 if known else 1)


def own_address() -> str:
    """Return the IP address by which other machines reach this one, or that of the machine itself without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; an address for documentation, so by the default route
        except OSError:
            return LOCAL
        return probe.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
