"""Read a MindIR graph: its operations, their dtypes, the block each belongs to, and how often each occurs.

A function that is called is read as if its operations stood in the place of the call. A function that is only referred
to, a branch or the backward pass of a call, is read once per reference, so both branches of an `if` count.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mindspore.train.mind_ir_pb2 import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}  # others in small letters
SIZES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp64": 8, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4, "int16": 2}
# What the run time need not do: another view of the same elements, or an order of side effects.
VIEWS = ("Reshape", "ExpandDims", "Squeeze", "TupleGetItem", "MakeTuple", "Load", "Depend", "UpdateState")
LEAVES = ("Parameter", "Input", "Constant")
NO_WORK = (*VIEWS, *LEAVES, "Partial", "Switch", "call")
BLOCK = re.compile(r"(?:^|\.)((?:\w*_)?blocks?\.\d+)\.")  # in the name of a weight
LAST = re.compile(r"(?:^|\.)(?:final_layer\.|proj_out\.|scale_shift_table$)")  # weights behind the blocks
BESIDE = ("adam_m.", "adam_v.", "sum.")  # what training keeps for each weight, under its name
TOKENS = 3  # the fewest axes of the tokens that go from block to block
GRADIENTS = "Gradients/"  # how the scope of the backward pass begins
BEGIN, END, BRANCH = "before the blocks", "after the blocks", "branches of an if"
COLUMNS = {  # of a table, and the operations that a column counts; names that end in Ext or are new are Ascend's
    "MatMul": ("MatMul", "BatchMatMul", "Dense", "Conv2D", "Conv2DExt", "ConvolutionGrad", "WeightQuantBatchMatmul"),
    "Flash": ("FlashAttentionScore", "FlashAttentionScoreGrad"),
    "Softmax": ("Softmax", "SoftmaxGrad", "SoftmaxBackward"),
    "LayerNorm": ("LayerNorm", "LayerNormGrad", "LayerNormExt", "LayerNormGradExt"),
    "Transpose": ("Transpose",),
    "Cast": ("Cast",),
    "Pad": ("Pad", "PadV3", "ConstantPadND"),
    "Slice": ("StridedSlice", "Slice", "SliceExt", "Split", "SplitTensor", "Narrow", "Unstack"),
    "Tile": ("Tile", "BroadcastTo", "RepeatInterleave", "Repeat", "Concat"),
    "Reshape": ("Reshape",),  # moves no bytes
    "Elementwise": (),  # everything else that computes
}
_COLUMN_OF = {op: column for column, ops in COLUMNS.items() for op in ops}


@dataclasses.dataclass(frozen=True)
class Output:
    """The type of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many bytes the tensor has."""
        return math.prod(self.shape) * SIZES.get(self.dtype, 1)


@dataclasses.dataclass(eq=False)
class Node:
    """An operation, or one of LEAVES; a call of what a branch returned has the op "call"."""

    op: str
    outputs: list[Output]
    inputs: list[Node] = dataclasses.field(default_factory=list, repr=False)  # their repr would be the whole graph
    name: str = ""  # of a parameter or an input of the graph
    scope: str = ""
    recompute: bool = False  # marked to be computed again in the backward pass
    block: str = ""

    @property
    def dtypes(self) -> list[str]:
        """The dtype of each output."""
        return [output.dtype for output in self.outputs]

    @property
    def column(self) -> str:
        """The column of a table that counts the node, or nothing."""
        if self.op in _COLUMN_OF:
            return _COLUMN_OF[self.op]
        return "" if self.op in NO_WORK else "Elementwise"

    @property
    def bytes(self) -> int:
        """About how many bytes are read and written if nothing is fused."""
        if self.op in NO_WORK:
            return 0
        return sum(output.bytes for node in (self, *self.inputs) for output in node.outputs)

    def source(self) -> Node:
        """Return the node itself, or what it is a view of."""
        node = self
        while node.op in VIEWS and len(node.inputs) and node.op != "MakeTuple":
            node = node.inputs[0]
        return node


def read_model(path: str | Path) -> ModelProto:
    """Return the graph in a MindIR file; its weights may lie beside it."""
    model = ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    return model


def read_graph(model: ModelProto) -> list[Node]:
    """Return the nodes of a graph, each after those it depends on and with its block, and those of what it calls."""
    reader = _Reader(model)
    nodes = reader.read()
    _assign_blocks(nodes)
    branches = {node for each in nodes if each.op == "Switch" for node in each.inputs}
    for inner, caller in reader.referred:
        for node in inner:
            node.block = BRANCH if caller in branches or not caller.block else caller.block
        branches.update(node for each in inner if each.op == "Switch" for node in each.inputs)
    return [*nodes, *(node for inner, _ in reader.referred for node in inner)]


def users(nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """Return which nodes take the output of each."""
    found: dict[Node, list[Node]] = {}
    for node in nodes:
        for source in node.inputs:
            found.setdefault(source, []).append(node)
    return found


class _Reader:
    """Turns the graphs of a file into nodes."""

    def __init__(self, model: ModelProto):
        self.graph, self.functions = model.graph, {function.name: function for function in model.functions}
        self.parameters = {each.name: _leaf("Parameter", each.name, [each]) for each in model.graph.parameter}
        self.referred: list[tuple[list[Node], Node]] = []  # what is not called where it stands, and who refers to it

    def read(self) -> list[Node]:
        """Return the nodes of the main graph."""
        known = {each.name: _leaf("Input", each.name, each.tensor) for each in self.graph.input}
        nodes = [*known.values(), *self.parameters.values()]
        self._expand(self.graph, known | self.parameters, nodes)
        return nodes

    def _expand(self, graph: GraphProto, known: dict[str, Node], nodes: list[Node]) -> Node | None:
        """Append the nodes of a graph, whose inputs are in `known`, and return the one that it returns."""
        known = dict(known)
        for proto in graph.node:
            op = proto.op_type.removeprefix("REF::")
            inputs = [known[name] for name in proto.input if name in known]
            if op in self.functions:
                function = self.functions[op]
                given = dict(zip((each.name for each in function.input), inputs, strict=False))
                result = self._expand(function, self._with_inputs(function, given, nodes), nodes)
                known |= {name: result for name in (proto.name, *proto.output) if result is not None}
                continue
            node = _node(op, proto, inputs)
            nodes.append(node)
            known |= dict.fromkeys((proto.name, *proto.output), node)
            for name in proto.input:
                if name in self.functions:
                    function = self.functions[name]
                    inner: list[Node] = []
                    given = dict(zip((each.name for each in function.input), inputs, strict=False))
                    place = len(self.referred)
                    self._expand(function, self._with_inputs(function, given, inner), inner)
                    self.referred.insert(place, (inner, node))
        return known.get(graph.output[0].name) if graph.output else None

    def _with_inputs(self, function: GraphProto, given: dict[str, Node], nodes: list[Node]) -> dict[str, Node]:
        """Return the inputs of a function: those that are given, and stand-ins for those that are not known."""
        others = {
            each.name: _leaf("Input", each.name, each.tensor) for each in function.input if each.name not in given
        }
        nodes.extend(others.values())
        return self.parameters | given | others


def _leaf(op: str, name: str, tensors: Iterable[TensorProto]) -> Node:
    return Node(op, [_output(tensor) for tensor in tensors], name=name.partition(":")[2] or name)


def _node(op: str, proto: NodeProto, inputs: list[Node]) -> Node:
    shapes = [attribute for attribute in proto.attribute if attribute.name in ("shape", "value")]
    outputs = [_output(tensor) for shape in shapes for tensor in _tensors(shape)]
    name, _, rest = op.partition(":")
    is_call = not name[:1].isupper() or "CNode" in rest
    recompute = any(attribute.name == "recompute" and attribute.i for attribute in proto.node_attr)
    return Node("call" if is_call else name, outputs, inputs, scope=proto.domain, recompute=recompute)


def _tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from attribute.tensors
    for value in attribute.values:
        yield from _tensors(value)


def _output(tensor: TensorProto) -> Output:
    name = TensorProto.DataType.Name(tensor.data_type)
    return Output(NAMES.get(name, name.lower()), tuple(tensor.dims))


def _assign_blocks(nodes: list[Node]) -> None:
    """Set the block of each node from the weights it depends on, because scopes name only the first block.

    Forward, a node is in the last block whose weights it depends on; behind the sum that ends a block the next one
    begins. Backward, it is in the first block whose outputs it takes.
    """
    first: dict[Node, int] = {}  # where each parameter is read first: later it is the optimizer that reads
    for i, node in enumerate(nodes):
        if node.op == "Load":
            first.setdefault(node.inputs[0], i)
    loads = [(i, _block_of(parameter)) for parameter, i in first.items()]
    order = list(dict.fromkeys(name for _, name in loads if name))  # as they are used
    place = {name: i for i, name in enumerate(order)}
    last_use = {place[name]: i for i, name in loads if name}
    end = max(last_use.values(), default=len(nodes))
    index: dict[Node, int] = {}
    backward: set[Node] = set()
    sums: dict[int, Node] = {}  # the last sum of two tensors in a block
    for i, node in enumerate(nodes):
        before = [index[each] for each in node.inputs]
        own = place.get(_block_of(node), -1)
        if node.scope.startswith(GRADIENTS) or any(each in backward for each in node.inputs):
            backward.add(node)
            index[node] = min((each for each in before if each >= 0), default=-1)
            continue
        if node.op == "Load" and not _block_of(node.inputs[0]) and (i > end or LAST.search(node.inputs[0].name)):
            own = len(order)
        index[node] = here = max(own, *before, -1)
        if node.op == "Add" and i > last_use.get(here, -1) and len(node.outputs[0].shape) >= TOKENS:
            sums[here] = node
    behind: set[Node] = set()  # the end of their block
    for node in nodes:
        same = [each for each in node.inputs if index[each] == index[node]]
        if node not in backward and any(each in behind or sums.get(index[each]) is each for each in same):
            behind.add(node)
    for node in nodes:
        here = index[node] + (node in behind)
        node.block = BEGIN if here < 0 else END if here >= len(order) else order[here]


def _block_of(node: Node) -> str:
    """Return the block that a parameter belongs to, or nothing."""
    own = node.op == "Parameter" and not node.name.startswith(BESIDE)
    found = BLOCK.search(node.name) if own else None
    return found[1] if found else ""


def count(nodes: Iterable[Node], key: Callable[[Node], str] = lambda node: node.block) -> dict[str, Counter]:
    """Return the number of nodes per column, and their bytes as "bytes", for each value of `key(node)`."""
    found: dict[str, Counter] = {}
    for node in nodes:
        if node.column:
            row = found.setdefault(key(node), Counter())
            row[node.column] += 1
            row["bytes"] += node.bytes
    return found


def table(rows: dict[str, Counter], first: str = "", sums: bool = True) -> str:
    """Return a table in Markdown with one line per row and one for the total; MB are 10^6 bytes, read or written."""
    if sums:
        rows = rows | {"total": sum(rows.values(), Counter())}
    lines = [[first, *COLUMNS, "MB"], ["---", *["---:"] * (len(COLUMNS) + 1)]]
    for name, row in rows.items():
        lines.append([name, *(str(row[column]) for column in COLUMNS), f"{row['bytes'] / 1e6:,.1f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def idle_casts(nodes: Iterable[Node]) -> list[Node]:
    """Return the casts that are only ever cast back to what they came from."""
    taken = users(nodes)

    def behind(node: Node) -> Iterator[Node]:
        for user in taken.get(node, ()):
            yield from behind(user) if user.op in ("Reshape", "ExpandDims", "TupleGetItem") else (user,)

    found = []
    for node in taken:
        if node.op == "Cast" and node.inputs[0].outputs:
            before = node.inputs[0].outputs[0].dtype
            after = list(behind(node))
            if after and all(user.op == "Cast" and user.outputs[0].dtype == before for user in after):
                found.append(node)
    return found
