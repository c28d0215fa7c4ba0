"""Read pickles as data: an interpreter of their opcodes that calls nothing but the functions it is given.

`pickle` runs what a file names. Here a name is only text: it is looked up in a table of this package, and what the
table lacks becomes an Opaque, which has no behaviour.
"""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_BYTES = 32 << 20  # of one pickle; that of the largest known checkpoint has one

MAX_STEPS = 2_000_000  # opcodes of one pickle, and elements that its calls return; a tensor takes 25
_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}


class PickleError(ValueError):
    """The bytes are not a pickle, or use something that checkpoints do not."""


@dataclass(frozen=True)
class Opaque:
    """Stands for an object or function that is not data, such as argparse.Namespace."""

    name: str


@dataclass(frozen=True)
class Unread(Opaque):
    """Stands for a tensor that cannot be read; the name says what it is, and the remedy."""


@dataclass(frozen=True)
class Table:
    """What the names in a pickle mean."""

    functions: Mapping[str, Callable[..., Any]]  # called with the arguments in the pickle
    constant: Callable[[str], Any]  # the value of any other name; an Opaque if it is none
    persistent: Callable[[Any], Any]  # gets the persistent id, PyTorch's way to name a storage
    build: Callable[[Any, Any], Any] = lambda made, state: made  # what a call made, once it gets its state


def read_pickle(data: bytes, table: Table, limit: int = MAX_BYTES) -> tuple[Any, int]:
    """Return the object in the first pickle of `data`, and the number of bytes it took.

    Sets come as lists; entries of a dict whose key is not text are left out: weights have names, and other keys can be
    slow to compare or too deep to be hashed.
    Raises PickleError for anything that is not a well-formed pickle of at most `limit` bytes and MAX_STEPS.
    """
    machine = _Machine(table)
    stream = io.BytesIO(data[:limit])
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.stack[-1], stream.tell()
    except PickleError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise PickleError("its pickle is damaged") from error


class _Machine:
    """A stack machine; one method or table entry for each opcode."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.left = MAX_STEPS

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode; raises PickleError for one that checkpoints do not use."""
        self.left -= 1
        if self.left < 0:
            raise PickleError(f"it describes more than {MAX_STEPS:,} objects, which no weights need")
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _MAKERS:
            self.stack.append(_MAKERS[name]())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        else:
            raise PickleError(f"the opcode {name}")

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pack(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((key, value) for key, value in pairs if isinstance(key, str))

    def make_dict(self, _: Any) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.update(items)

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def look_up(self, name: str) -> None:
        self.stack.append(Opaque(name) if name in self.table.functions else self.table.constant(name))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise PickleError("a global whose name is not text")
        self.look_up(f"{module}.{name}")

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.apply(function, arguments)

    def apply(self, function: Any, arguments: Any) -> None:
        known = self.table.functions.get(function.name) if isinstance(function, Opaque) else None
        made = known(*arguments) if known else Opaque(getattr(function, "name", type(function).__name__))
        if isinstance(made, (tuple, dict)):  # copies of what one list holds could fill the memory
            self.left -= len(made)
        self.stack.append(made)

    def build(self, _: Any) -> None:
        state, made = self.stack.pop(), self.stack.pop()
        self.stack.append(self.table.build(made, state))

    def inst(self, name: str) -> None:
        self.apply(Opaque(name.replace(" ", ".", 1)), self.since_mark())

    def obj(self, _: Any) -> None:
        function, *arguments = self.since_mark()
        self.apply(function, arguments)

    def new_with_keywords(self, _: Any) -> None:
        self.stack.pop()
        self.call(_)

    def persistent_id(self, identifier: Any) -> None:
        self.stack.append(self.table.persistent(identifier))


_PUSHED = frozenset(_VALUES.split())
_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.pack(1),
    "TUPLE2": lambda machine, _: machine.pack(2),
    "TUPLE3": lambda machine, _: machine.pack(3),
    **dict.fromkeys(("LIST", "FROZENSET"), lambda machine, _: machine.push(machine.since_mark())),
    "DICT": _Machine.make_dict,
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.since_mark())),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop() for _ in "kv"][::-1]),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])),
    "GLOBAL": lambda machine, name: machine.look_up(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.stack_global,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": lambda machine, _: machine.persistent_id(machine.stack.pop()),
}
