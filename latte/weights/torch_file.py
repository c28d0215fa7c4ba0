"""PyTorch's checkpoint files without PyTorch: read both serializations, write the newer one.

The newer one is a zip archive, not compressed: `data.pkl` describes the objects, `data/0`, `data/1`, ... are the
storages. The older one is a sequence of pickles (magic number, protocol, system, objects, storage keys), then the
storages, each after its int64 length. Nothing in a file is ever executed; see pickle_data.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latte.errors import UserError, quoted
from latte.io.atomic import atomic_path
from latte.weights.dtypes import BY_NUMPY, TABLE, names_of, numpy_dtype, odd_dtype, raw_bytes
from latte.weights.mapped import MAX_AXES, REMEDY, Mapped, check_count, map_file, not_a_checkpoint, sniff, view
from latte.weights.pickle_data import MAX_BYTES, Opaque, PickleError, Table, Unread, read_pickle

if TYPE_CHECKING:
    from pathlib import Path

ALIGNMENT = 64  # of storages in the zip archive, as PyTorch does it
_ZIP_ERRORS = (zipfile.BadZipFile, struct.error, ValueError, LookupError, OSError, EOFError, NotImplementedError)
_END = b"PK\x05\x06"  # begins the end of a zip archive, 22 bytes and a comment
_DATA = re.compile(r"(data|constants)(\.pkl|/\w+)|byteorder")  # records of a TorchScript program that hold no code
_STORAGES = {names.storage: names.numpy for names in TABLE}
_ODD_STORAGES = {  # the bytes of elements that nothing here computes with
    "UntypedStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}
_ODD_DTYPES = {  # of tensors in an untyped storage
    "torch.float8_e4m3fn": 1,
    "torch.float8_e4m3fnuz": 1,
    "torch.float8_e5m2": 1,
    "torch.float8_e5m2fnuz": 1,
    "torch.float8_e8m0fnu": 1,
    "torch.float4_e2m1fn_x2": 1,
    "torch.uint16": 2,
    "torch.uint32": 4,
    "torch.uint64": 8,
    "torch.complex32": 4,
}
_UNREAD = {  # functions that rebuild tensors of which there is no view
    "_rebuild_sparse_tensor": Unread("a sparse tensor; save it after .to_dense()"),
    "_rebuild_nested_tensor": Unread("a nested tensor; save its parts"),
    "_rebuild_qtensor": Unread("a quantized tensor; save it after .dequantize()"),
    "_rebuild_meta_tensor_no_storage": Unread(
        "a tensor of the device meta, which has no values; load the weights first"
    ),
    "_rebuild_device_tensor_from_numpy": Unread("a tensor of another device, as a NumPy array; save it after .cpu()"),
    "_rebuild_xla_tensor": Unread("a tensor of another device, as a NumPy array; save it after .cpu()"),
    "_rebuild_wrapper_subclass": Unread("a tensor of a class without data; save it as a plain tensor"),
}
_REPEATS = Unread("a tensor that repeats elements, as .expand() makes them; save it after .contiguous()")
_LAZY = Unread("a conjugated or negated view; save it after .resolve_conj().resolve_neg()")
_SHARD = Unread("a part of a distributed tensor; gather it with full_tensor() before it is saved")


class _Storage(NamedTuple):
    """A run of elements in the file."""

    dtype: np.dtype
    start: int  # byte in the file
    size: int  # elements


def read_torch_file(path: str | Path) -> Any:
    """Return the objects that `torch.save` wrote (.pt, .pth, .bin, .ckpt).

    Tensors and parameters come as read-only NumPy arrays, views into the file, so memory is used as they are read;
    tensors of one storage share it. bfloat16 is MindSpore's NumPy type. OrderedDicts come as dicts, torch.Size as a
    tuple, torch.float32 and its like as NumPy dtypes, and what is not data as Opaque.
    Tensors of an element type that `dtypes` does not list have one of `odd_dtype`; what else is a tensor, but cannot be
    read, comes as Unread.
    Raises UserError if the file is missing, damaged or no PyTorch file. `mapped.verified` compares the checksums of
    elements, when they are used.
    """
    data = map_file(path)
    kind = sniff(data)
    try:
        if kind == "zip":
            return _read_zip(path, data)
        if kind == "legacy":
            return _read_legacy(path, data)
    except PickleError as error:
        raise UserError(f"{path} cannot be read: {error}; {REMEDY}, or save it again as plain tensors") from None
    raise not_a_checkpoint(path, data)


def read_torchscript(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of a TorchScript program that torch.jit.save wrote; its code is not looked at.

    Attributes come in the order of the file, under the names of modules and attributes joined by dots; behind them the
    tensors that its code has as constants, as c0, c1, ... They are views as those of `read_torch_file`.
    Raises UserError if the file is missing, damaged or no TorchScript program.
    """
    data = map_file(path)
    if sniff(data) != "zip":
        raise not_a_checkpoint(path, data)
    try:
        spans = _spans(path, data, program=True)
        attributes = _read_record(path, data, spans, "data")
        constants = _read_record(path, data, spans, "constants")
        found = dict(_tensors(attributes))
        found |= {f"c{i}": each for i, each in enumerate(constants) if isinstance(each, np.ndarray)}
    except (PickleError, TypeError) as error:
        reason = error if isinstance(error, PickleError) else "its constants are no tuple"
        raise UserError(f"{path} cannot be read: {reason}; {REMEDY}") from None
    return found


def _tensors(attributes: Any, name: str = "", depth: int = 0) -> list[tuple[str, np.ndarray]]:
    """Return the tensors in nested attributes, by their names."""
    if isinstance(attributes, np.ndarray):
        return [(name, attributes)]
    if not isinstance(attributes, dict):
        return []
    if depth > MAX_AXES:
        raise PickleError("its modules lie too deep in one another")
    return [
        item
        for key, value in attributes.items()
        for item in _tensors(value, f"{name}.{key}" if name else key, depth + 1)
    ]


def _read_zip(path: str | Path, data: Mapped) -> Any:
    return _read_record(path, data, _spans(path, data), "data")


def _read_record(path: str | Path, data: Mapped, spans: Mapping[str, tuple[int, int]], record: str) -> Any:
    """Return the objects of a pickle in an archive, whose storages lie in the folder of its name."""
    order, stop = spans.get("byteorder", (0, 0))
    if data[order:stop] == b"big":
        raise _big_endian(path)
    if data[order:stop] not in (b"little", b""):
        raise PickleError("the order of its bytes is not known")

    def storage(key: str, kind: str, size: int) -> _Storage:
        if f"{record}/{key}" not in spans:
            raise PickleError("a storage in it is missing")
        start, stop = spans[f"{record}/{key}"]
        dtype = _dtype_of(kind) or odd_dtype(kind, max(1, (stop - start) // (size or 1)))
        if size * dtype.itemsize > stop - start:
            raise PickleError("a storage in it is smaller than it says")
        return _Storage(dtype, start, size)

    start, stop = spans[f"{record}.pkl"]
    if stop - start > MAX_BYTES:
        raise PickleError(f"its {record}.pkl has more than {MAX_BYTES >> 20} MiB, as if it held arrays, not tensors")
    if stop > start:
        data.verify(start)
    return read_pickle(data[start:stop], _Rebuild(path, data, storage).table())[0]


def _spans(path: str | Path, data: Mapped, program: bool = False) -> dict[str, tuple[int, int]]:
    """Return where the records of an archive lie in the file, by name, and let the map know their checksums.

    Of a TorchScript program these are the records that hold no code.
    """
    end = data.rfind(_END, max(0, len(data) - (1 << 16) - 22))
    if end >= 0 and int.from_bytes(data[end + 10 : end + 12], "little") == 0xFFFF:
        raise UserError(f"{path} has more than 65,534 records, which no network here needs; name another file")
    try:
        with zipfile.ZipFile(path) as archive:
            records = [info for info in archive.infolist() if not info.is_dir()]
        names = {info.filename.partition("/")[2]: info for info in records}
        if "data.pkl" not in names:
            raise not_a_checkpoint(path, data)
        if "constants.pkl" in names and not program:
            raise UserError(f"{path} is a TorchScript program, not a checkpoint; save its state_dict() instead")
        if "constants.pkl" not in names and program:
            raise UserError(f"{path} is a checkpoint, not a TorchScript program")
        if len(names) < len(records) or len({info.filename.partition("/")[0] for info in records}) > 1:
            raise UserError(f"{path} has a record twice, or two roots, so that readers differ; {REMEDY}")
        if program:  # code is compressed
            names = {name: info for name, info in names.items() if _DATA.fullmatch(name)}
        spans = {name: _span(path, data, info) for name, info in names.items()}
    except _ZIP_ERRORS:
        raise UserError(f"{path} is a zip file that is cut off or damaged; {REMEDY}") from None
    if any(info.CRC for info in names.values()):  # PyTorch can be told to leave them out
        data.expect((*spans[name], info.CRC, name) for name, info in names.items())
    return spans


def _dtype_of(kind: str) -> np.dtype | None:
    """Return the type of the elements of a storage class, or None if it is not known."""
    if kind in _STORAGES:
        return numpy_dtype(_STORAGES[kind])
    return odd_dtype(kind.removesuffix("Storage"), _ODD_STORAGES[kind]) if kind in _ODD_STORAGES else None


def _span(path: str | Path, data: Mapped, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Return where the bytes of a record lie in the file: start, end."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UserError(
            f"{path} is a compressed archive; unpack it and name the file inside, or save it with torch.save"
        )
    name_length, extra_length = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.file_size > len(data):
        raise zipfile.BadZipFile
    return start, start + info.file_size


def _read_legacy(path: str | Path, data: Mapped) -> Any:
    position, objects = 0, []
    declared: dict[str, tuple[np.dtype, int]] = {}

    def declare(key: str, kind: str, size: int) -> _Storage:
        dtype = _dtype_of(kind)
        if dtype is None:
            raise PickleError(f"storages of the kind {quoted(kind)} are not known")
        declared[key] = (dtype, size)
        return _Storage(dtype, 0, 0)

    # The storages come last, so the objects are read twice: first for where they end and what storages they name.
    for _ in range(5):
        value, length = read_pickle(data[position : position + MAX_BYTES], _Rebuild(path, None, declare).table())
        objects.append((value, position))
        position += length
    system = objects[2][0]
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise _big_endian(path)

    found: dict[str, _Storage] = {}
    keys: list[Any] = objects[4][0] if isinstance(objects[4][0], list) else [None]
    for key in keys:
        dtype, size = declared.get(key, (None, 0)) if isinstance(key, str) else (None, 0)
        if dtype is None or key in found or int.from_bytes(data[position : position + 8], "little") != size:
            raise PickleError("its list of storages is not that of its tensors")
        found[key] = _Storage(dtype, position + 8, size)
        position += 8 + size * dtype.itemsize
    if position > len(data) or set(found) != set(declared):
        raise PickleError("it ends early")
    rebuild = _Rebuild(path, data, lambda key, kind, size: found[key])
    return read_pickle(data[objects[3][1] : objects[4][1]], rebuild.table())[0]


def _big_endian(path: str | Path) -> UserError:
    return UserError(f"{path} was written on a big-endian computer; save it on a little-endian one")


class _Rebuild:
    """What the functions that PyTorch's pickles name do here; without `data`, tensors come as None."""

    def __init__(self, path: str | Path, data: Mapped | None, storage: Callable[[str, str, int], _Storage]) -> None:
        self.path, self.data, self.storage = path, data, storage
        self.count = 0

    def table(self) -> Table:
        """Return the meaning of every name that a pickle may use."""
        functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": _ordered_dict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.tensor_of_bytes,
            "torch_npu.utils.storage._rebuild_npu_tensor": self.tensor,
            "torch._utils._rebuild_parameter": lambda value, *_: value,
            "torch._utils._rebuild_parameter_with_state": lambda value, *_: value,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda value, *_: value,
            "torch._tensor._rebuild_from_type_v2": self.tensor_of_class,
            **{f"torch._utils.{name}": lambda *_, unread=unread: unread for name, unread in _UNREAD.items()},
        }
        return Table(functions, _constant, self.persistent, _with_attributes)

    def tensor(self, source: _Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Any:
        """Return a view of a storage, which begins at its element `offset`; `rest` may hold the state of lazy views."""
        if not isinstance(source, _Storage):
            raise PickleError("a tensor in it has no storage")
        self.count += 1
        check_count(self.path, self.count)
        if self.data is None:
            return None
        if type(offset) is not int or offset < 0:
            raise PickleError("a tensor in it has an invalid offset")
        if any(isinstance(state, dict) and (state.get("conj") or state.get("neg")) for state in rest):
            return _LAZY
        stop = source.start + source.size * source.dtype.itemsize
        array = view(self.data, source.dtype, shape, source.start + offset * source.dtype.itemsize, stop, strides)
        return _REPEATS if array.size > source.size else array

    def tensor_of_bytes(self, source: _Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Any:
        """Return a tensor of a storage of bytes; its type comes after requires_grad and hooks."""
        kind = rest[2]
        size = kind.itemsize if isinstance(kind, np.dtype) else _ODD_DTYPES.get(getattr(kind, "name", ""))
        if size is None or not isinstance(source, _Storage):
            return Unread(f"a tensor of {quoted(getattr(kind, 'name', 'an unknown type'))}; save it as float32")
        dtype = kind if isinstance(kind, np.dtype) else odd_dtype(kind.name.removeprefix("torch."), size)
        elements = source.size * source.dtype.itemsize // size
        return self.tensor(_Storage(dtype, source.start, elements), offset, shape, strides, *rest[3:])

    def tensor_of_class(self, function: Any, _: Any, arguments: tuple, state: Any = None) -> Any:
        """Return a tensor without its attributes, or what a distributed one holds here if that is the whole of it."""
        name = getattr(function, "name", "").rpartition(".")[2]
        if name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return (self.tensor if name.endswith("v2") else self.tensor_of_bytes)(*arguments)
        slots = state[1] if isinstance(state, tuple) and len(state) == 2 else state
        local = slots.get("_local_tensor") if isinstance(slots, dict) else None
        return local if isinstance(local, np.ndarray) and local.shape == arguments[2] else _SHARD

    def persistent(self, identifier: Any) -> _Storage:
        """Return the storage that PyTorch's ("storage", class, key, device, elements) names."""
        tag, kind, key, _, size, *views = identifier
        if tag != "storage" or not isinstance(kind, Opaque) or not isinstance(key, str) or any(views):
            raise PickleError("it refers to something that is not a storage")
        if type(size) is not int or size < 0:
            raise PickleError("a storage in it has an invalid size")
        return self.storage(key, kind.name.rpartition(".")[2], size)


def _ordered_dict(items: Iterable[Any] = ()) -> dict:
    return {key: value for key, value in items if isinstance(key, str)}


def _constant(name: str) -> Any:
    """Return the NumPy dtype of torch.float32 and its like, an Opaque for any other name."""
    module, _, attribute = name.rpartition(".")
    return numpy_dtype(attribute) if module == "torch" and attribute in BY_NUMPY else Opaque(name)


def _with_attributes(made: Any, state: Any) -> Any:
    """Return what a call made; of a TorchScript module, whose class is code of its file, the attributes."""
    return state if isinstance(made, Opaque) and made.name.startswith("__torch__.") else made


def write_torch_file(path: str | Path, obj: Any, progress: Callable[[int], Any] = lambda count: None) -> None:
    """Write nested dicts, lists, numbers, strings and NumPy arrays so that torch.load reads arrays as tensors.

    One array is in memory at a time, if it is a view into a file. Arrays keep their dtype; those that are one object
    share a storage. `progress` gets the number of bytes of each array that has been written. The file takes the place
    of an older one when it is whole.
    Raises UserError if anything else is among them, or the file cannot be written.
    """
    pickler = _Pickler()
    pickler.add(obj, "the object")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _write_record(archive, "data.pkl", b"\x80\x02" + b"".join(pickler.parts) + b".")
        _write_record(archive, "byteorder", b"little")
        for index, array in enumerate(pickler.arrays.values()):
            _write_record(archive, f"data/{index}", raw_bytes(array))
            progress(array.nbytes)
        _write_record(archive, "version", b"3\n")
        _write_record(archive, ".data/serialization_id", b"0" * 40)


def _write_record(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Add a record whose content begins at a multiple of ALIGNMENT, by an extra field in its header."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(content)
    zip64 = 20 if info.file_size * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile's own rule for a larger header
    start = archive.start_dir + 30 + len(info.filename) + zip64 + 4
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + bytes(padding)
    with archive.open(info, "w") as record:
        record.write(content)


class _Pickler:
    """Writes a pickle of protocol 2 as PyTorch does, and collects the arrays in it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.arrays: dict[int, np.ndarray] = {}  # by identity

    def add(self, obj: Any, key: str) -> None:
        """Append an object; raises UserError, with `key` for its name, if it is of no known kind."""
        if isinstance(obj, np.generic) and obj.dtype.name != "bfloat16":
            obj = obj.item()
        if obj is None or isinstance(obj, bool):
            self.parts.append({None: b"N", True: b"\x88", False: b"\x89"}[obj])
        elif isinstance(obj, int):
            encoded = obj.to_bytes(obj.bit_length() // 8 + 1, "little", signed=True)
            self.parts.append(b"\x8a" + struct.pack("<B", len(encoded)) + encoded)
        elif isinstance(obj, float):
            self.parts.append(b"G" + struct.pack(">d", obj))
        elif isinstance(obj, str):
            encoded = obj.encode()
            self.parts.append(b"X" + struct.pack("<I", len(encoded)) + encoded)
        elif isinstance(obj, np.ndarray):
            self.add_array(obj, key)
        elif isinstance(obj, Mapping):
            self.parts.append(b"}(")
            for name, value in obj.items():
                self.add(name, f"a key of {key}")
                self.add(value, str(name))
            self.parts.append(b"u")
        elif isinstance(obj, (list, tuple)):
            self.parts.append(b"](" if isinstance(obj, list) else b"(")
            for i, value in enumerate(obj):
                self.add(value, f"{key}[{i}]")
            self.parts.append(b"e" if isinstance(obj, list) else b"t")
        else:
            raise UserError(f"{key} is a {type(obj).__name__}, which cannot be saved; give arrays or plain values")

    def add_array(self, array: np.ndarray, key: str) -> None:
        """Append a call that rebuilds a tensor from the storage with the array's number."""
        names = names_of(array, key)
        self.arrays.setdefault(id(array), array)
        strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
        self.parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.add("storage", key)
        self.parts.append(f"ctorch\n{names.storage}\n".encode())
        self.add(str(list(self.arrays).index(id(array))), key)
        self.add("cpu", key)
        self.add(array.size, key)
        self.parts.append(b"tQ")
        for value in (0, array.shape, tuple(strides), False):
            self.add(value, key)
        self.parts.append(b"ccollections\nOrderedDict\n)RtR")
