"""Processes that are ranks of the stand-in's HCCL, without MindSpore: each calls what the test tells it to."""

import contextlib
import ctypes
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT_INFO, CONFIG_MAGIC = 4108, 0xF0F0F0F0
COMM = "the rank's communicator"  # stands for it among arguments
PARENT = "a pointer to the rank's communicator"  # as that of a group is made from it


class Answer(NamedTuple):
    """What a call returned: its code, the sentence if that is an error, and the arrays among its arguments after it."""

    code: int
    sentence: str
    arrays: list[np.ndarray]


class Ranks:
    """Several ranks; `call` lets each call one function, all at the same time."""

    def __init__(self, number: int, libraries: Path, environment: dict[str, str] | None = None, joins: bool = True):
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(number):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, libraries, environment or {}), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        if joins:
            root = self.call("HcclGetRootInfo", np.zeros(ROOT_INFO, np.int8), ranks=[0])[0].arrays[0]
            for answer in self.join("HcclCommInitRootInfo", [(number, root, rank) for rank in range(number)]):
                assert answer.code == 0, answer.sentence

    def join(self, name: str, arguments: list[tuple]) -> list[Answer]:
        """Call a function that makes a communicator, with the arguments of each rank, and keep the communicator."""
        for pipe, given in zip(self.pipes, arguments, strict=True):
            pipe.send(("join", name, given))
        return [pipe.recv() for pipe in self.pipes]

    def call(self, name: str, *arguments: object, ranks: list[int] | None = None) -> list[Answer]:
        """Call a function on all ranks, or the given ones; an argument that is a list holds one value per rank."""
        ranks = list(range(len(self.pipes))) if ranks is None else ranks
        for place, rank in enumerate(ranks):
            given = [value[place] if isinstance(value, list) else value for value in arguments]
            self.pipes[rank].send(("call", name, given))
        return [self.pipes[rank].recv() for rank in ranks]

    def batch(self, transfers: list[list[tuple[int, np.ndarray, int, int]]]) -> list[Answer]:
        """Call HcclBatchSendRecv with each rank's transfers: (0 sends or 1 receives, array, dtype, other rank)."""
        for pipe, given in zip(self.pipes, transfers, strict=True):
            pipe.send(("batch", "HcclBatchSendRecv", given))
        return [pipe.recv() for pipe in self.pipes]

    def start(self, rank: int, name: str, *arguments: object) -> None:
        """Let one rank call a function; `answer` waits for it."""
        self.pipes[rank].send(("call", name, arguments))

    def answer(self, rank: int) -> Answer:
        """Return what the rank's call returned."""
        return self.pipes[rank].recv()

    def close(self) -> None:
        """End the ranks."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join(10)


def config() -> np.ndarray:
    """Return an HcclCommConfig as HcclCommConfigInit sets it up; of its fields only the head is read."""
    values = np.zeros(4096, np.uint8)
    values[8:12] = np.frombuffer(np.uint32(CONFIG_MAGIC).tobytes(), np.uint8)
    return values


def serve(pipe: Connection, libraries: Path, environment: dict[str, str]) -> None:
    """Do what comes through the pipe until it brings None."""
    os.environ.update(environment)
    core = ctypes.CDLL(str(libraries / "libascendcl.so"), mode=ctypes.RTLD_GLOBAL)
    core.aclGetRecentErrMsg.restype = ctypes.c_char_p
    hccl = ctypes.CDLL(str(libraries / "libhccl.so"))
    communicator = ctypes.c_void_p()
    while (job := pipe.recv()) is not None:
        kind, name, arguments = job
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        passed = [_pass(value, communicator) for value in arguments]
        if kind == "join":
            passed.append(ctypes.byref(communicator))
        if kind == "batch":
            arrays = [array for _, array, _, _ in arguments]
            passed = [_items(arguments), len(arguments), communicator, None]
        code = getattr(hccl, name)(*passed)
        pipe.send(Answer(code, core.aclGetRecentErrMsg().decode() if code else "", arrays))


class _Item(ctypes.Structure):
    """An HcclSendRecvItem."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("count", ctypes.c_uint64),
        ("dtype", ctypes.c_int),
        ("other", ctypes.c_uint32),
    )


def _items(transfers: list[tuple[int, np.ndarray, int, int]]) -> ctypes.Array:
    items = [_Item(kind, array.ctypes.data, array.size, dtype, other) for kind, array, dtype, other in transfers]
    return (_Item * len(items))(*items)


def _pass(value: object, communicator: ctypes.c_void_p) -> object:
    if isinstance(value, str) and value == PARENT:
        return ctypes.byref(ctypes.c_void_p(communicator.value))
    if isinstance(value, str) and value == COMM:
        return communicator
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, int):
        return ctypes.c_uint64(value)
    return value.encode() if isinstance(value, str) else value
