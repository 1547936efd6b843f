"""Which part of the detector each node of a graph belongs to: `input` to `post`."""

import re
from collections import defaultdict

import onnx

PARTS = ("input", "backbone", "neck", "towers", "dcn", "post")
LAYOUT = "layout"  # what a runtime adds to change the order of a tensor in memory
_WEIGHT = re.compile(r"(?:^|[.\W_])(backbone|neck|head)\.(align)?")


def part_of_weight(name: str) -> str | None:
    """The part that a weight belongs to by its name; None for anything else."""
    match = _WEIGHT.search(name)
    if match is None:
        return None
    if match[1] == "head":
        return "dcn" if match[2] else "towers"
    return match[1]


def node_parts(graph: onnx.GraphProto) -> dict[str, str]:
    """The part of every node, by the name of the node and of each of its outputs.

    A node with weights belongs to the part of its weights; one that no node with weights comes
    after to `post`; one that none comes before to `input`; any other to the last part before it.
    """
    weights = {item.name: part_of_weight(item.name) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:  # of 8 bits
            weights[node.output[0]] = weights[node.input[0]]
    own = [
        next((p for name in node.input if (p := weights.get(name))), None) for node in graph.node
    ]
    reaches = _reach_weights(graph, own)
    before: dict[str, int] = {}  # last part before and in a tensor's producer
    found: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        part = own[index]
        earlier = max((before.get(name, 0) for name in node.input), default=0)
        if part is None:
            part = PARTS[earlier] if reaches[index] else "post"
        for name in (node.name, *node.output):
            found[name] = part
        for name in node.output:
            before[name] = PARTS.index(part)
    return found


def _reach_weights(graph: onnx.GraphProto, own: list[str | None]) -> list[bool]:
    """Whether a node with weights comes after each node."""
    users: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for name in node.input:
            users[name].append(index)
    reaches = [False] * len(graph.node)
    for index in range(len(graph.node) - 1, -1, -1):  # nodes are in topological order
        after = [user for name in graph.node[index].output for user in users[name]]
        reaches[index] = any(own[user] is not None or reaches[user] for user in after)
    return reaches
