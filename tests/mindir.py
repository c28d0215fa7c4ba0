"""Read the nodes of an exported graph: operator, element types of its outputs, and the scope it was made in."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto


class Node(NamedTuple):
    """One operation of a graph."""

    op: str
    dtypes: list[str]
    scope: str


def nodes(path: Path) -> Iterator[Node]:
    """Yield the nodes of all graphs of a MindIR file; operators that are not primitives have the op "call"."""
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            _, _, name = node.op_type.partition("REF::")
            shapes = [attribute for attribute in node.attribute if attribute.name == "shape"]
            tensors = [t for shape in shapes for value in (shape, *shape.values) for t in value.tensors]
            dtypes = [TensorProto.DataType.Name(tensor.data_type) for tensor in tensors]
            yield Node(name.split(":")[0] or node.op_type, dtypes, node.domain)
