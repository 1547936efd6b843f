"""What a bundle's graph is made of, and where ONNX Runtime's time goes: `clq-export inspect`."""

import json
import math
import re
import statistics
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import inliner

from clq_export.parts import LAYOUT, PARTS, node_parts, part_of_weight
from clq_serve.bundle import MODEL_FILE, Bundle, read_listed
from clq_train.stored_kernels import as_float32

_NO_WEIGHT = ("_scale", "_zero_point")


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes and parameters in the file, multiply-adds of one image, and time of one run."""

    nodes: int
    parameters: int
    macs: int
    ms: float


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node of the graph that ONNX Runtime made of ours."""

    name: str
    kind: str
    part: str
    ms: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """See the table that `clq-export inspect` prints; `parts` is in the order of the data.

    inputs, outputs  type and sides of each tensor; a name in place of a number is a free side
    size             (H, W) that macs and times are of, with `threads` on the CPU
    """

    bundle: str
    digest: str
    precision: str
    dcn: str
    opset: int
    bytes: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    kinds: dict[str, int]
    size: tuple[int, int]
    threads: int
    parts: dict[str, Part]
    nodes: list[NodeTime]


def inspect_bundle(bundle: Bundle, size: tuple[int, int], threads: int, repeats: int) -> Inspection:
    """The inspection of a bundle on a random image of `size`, H and W multiples of its padding."""
    data = read_listed(bundle, MODEL_FILE)
    model = as_float32(onnx.load_model_from_string(data))
    kinds = Counter(node.op_type for node in model.graph.node)
    graph, run = named(model)
    parts = node_parts(graph)
    macs, times = count_macs(run, size, parts), node_times(run, size, threads, repeats, parts)
    nodes = Counter(parts[node.name] for node in graph.node)
    parameters = count_parameters(graph)
    spent: dict[str, float] = defaultdict(float)
    for time in times:
        spent[time.part] += time.ms
    created = bundle.manifest.created
    stored = ", kernels stored in float16" if created.get("weights") == "float16" else ""
    return Inspection(
        bundle=f"{bundle.manifest.name}/{bundle.manifest.version}",
        digest=bundle.digest,
        precision=bundle.manifest.precision + stored,
        dcn=created.get("dcn", "standard"),
        opset=next(entry.version for entry in model.opset_import if entry.domain == ""),
        bytes=len(data),
        inputs={value.name: describe(value) for value in graph.input},
        outputs={value.name: describe(value) for value in graph.output},
        kinds=dict(kinds.most_common()),
        size=size,
        threads=threads,
        parts={
            name: Part(nodes[name], parameters[name], macs[name], spent[name])
            for name in (*PARTS, LAYOUT)
        },
        nodes=times,
    )


def named(model: onnx.ModelProto) -> tuple[onnx.GraphProto, bytes]:
    """The graph with functions put in place and a name on every node, and the same as bytes."""
    inlined = inliner.inline_local_functions(model) if model.functions else model
    for node in inlined.graph.node:
        node.name = node.name or node.output[0]
    return inlined.graph, inlined.SerializeToString()


def count_parameters(graph: onnx.GraphProto) -> Counter[str]:
    """Numbers in the weights of each part, without scales and zero points of 8-bit graphs."""
    found: Counter[str] = Counter()
    for item in graph.initializer:
        part = part_of_weight(item.name)
        if part is not None and not item.name.endswith(_NO_WEIGHT):
            found[part] += math.prod(item.dims)
    return found


def count_macs(data: bytes, size: tuple[int, int], parts: dict[str, str]) -> Counter[str]:
    """Multiply-adds of convolutions and matrix products of each part, for one image of (H, W).

    ONNX Runtime runs the graph as it is, without optimisations, and tells the shapes.
    """
    found: Counter[str] = Counter()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for event in _profile(data, size, threads=1, repeats=1, level=level):
        args = event["args"]
        shapes = [next(iter(entry.values())) for entry in args["input_type_shape"]]
        out = next(iter(args["output_type_shape"][0].values()))
        name = _node_name(event)
        if args["op_name"] in ("Conv", "DeformConv"):
            found[parts[name]] += math.prod(out) * math.prod(shapes[1][1:])
        elif args["op_name"] == "MatMul":
            found[parts[name]] += math.prod(out) * shapes[0][-1]
    return found


def node_times(
    data: bytes, size: tuple[int, int], threads: int, repeats: int, parts: dict[str, str]
) -> list[NodeTime]:
    """The median time of each node in the graph that ONNX Runtime optimised, slowest first."""
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in _profile(data, size, threads, repeats + 1, level):
        times[_node_name(event), event["args"]["op_name"]].append(event["dur"] / 1e3)
    found = []
    for (name, kind), all_ms in times.items():
        warm = all_ms[1:]
        part = LAYOUT if kind.startswith("Reorder") else _part(name, parts)
        found.append(NodeTime(name, kind, part, statistics.median(warm)))
    return sorted(found, key=lambda node: -node.ms)


def describe(value: onnx.ValueInfoProto) -> str:
    """e.g. "uint8 [N, H, W, 3]"."""
    tensor = value.type.tensor_type
    sides = [side.dim_param or str(side.dim_value) for side in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{dtype} [{', '.join(sides)}]"


def _part(name: str, parts: dict[str, str]) -> str:
    """Fused nodes have the name of a node or output, and a mark of the optimisation after it.

    _nchwc where the layout was changed, _token_N where 8 bits were fused.
    """
    plain = re.sub(r"_nchwc$|_token_\d+$", "", name)
    return parts.get(name) or parts.get(plain) or "post"


def _node_name(event: dict[str, Any]) -> str:
    return str(event["name"]).removesuffix("_kernel_time")


def _profile(
    data: bytes,
    size: tuple[int, int],
    threads: int,
    repeats: int,
    level: onnxruntime.GraphOptimizationLevel,
) -> list[dict[str, Any]]:
    """ONNX Runtime's record of every node that it ran, of `repeats` runs on one random image."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.graph_optimization_level = level
    options.enable_profiling = True
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def table(found: Inspection, slowest: int) -> list[str]:
    """The lines that a person reads."""
    height, width = found.size
    rows = [
        f"{found.bundle}  {found.precision}, deformable convolution {found.dcn}, opset "
        f"{found.opset}, {found.bytes / 1e6:.1f} MB",
        *(f"  in   {name:11s} {text}" for name, text in found.inputs.items()),
        *(f"  out  {name:11s} {text}" for name, text in found.outputs.items()),
        "",
        f"one image of {width} x {height}, ONNX Runtime {onnxruntime.__version__}, "
        f"{found.threads} threads",
        f"{'part':10s} {'nodes':>6s} {'parameters':>11s} {'GMAC':>7s} {'ms':>8s} {'share':>6s}",
    ]
    total = Part(*(sum(getattr(p, name) for p in found.parts.values()) for name in Part.__slots__))
    for name, part in [*found.parts.items(), ("all", total)]:
        rows.append(
            f"{name:10s} {part.nodes:6d} {part.parameters:11,d} {part.macs / 1e9:7.2f} "
            f"{part.ms:8.1f} {part.ms / (total.ms or 1):6.1%}"
        )
    rows += ["", "nodes: " + ", ".join(f"{n} {kind}" for kind, n in found.kinds.items())]
    rows += ["", f"{'slowest node':44s} {'kind':14s} {'part':9s} {'ms':>7s}"]
    rows += [
        f"{n.name[:44]:44s} {n.kind:14s} {n.part:9s} {n.ms:7.2f}" for n in found.nodes[:slowest]
    ]
    return rows
