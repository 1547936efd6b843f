"""Our TensorRT code on the real Python bindings of TensorRT, without TensorRT's libraries.

usage: try_bindings.py, in the environment of stub_tensorrt; the last line printed is JSON

The bindings' own classes register the plugins, ask them for types, shapes and kernels, and check
what they get.  Only three holders of C++ objects, which TensorRT makes, are stood in for:
dimensions are Python expressions here that can be evaluated.
"""

import ast
import functools
import json
from pathlib import Path

import tensorrt as trt


class Dimension:
    """IDimensionExpr: a number or a name, or an operation on two of these."""

    def __init__(self, value, *parts):
        self.value, self.parts = value, parts

    def is_constant(self):
        return isinstance(self.value, int)

    def get_constant_value(self):
        assert self.is_constant()
        return self.value

    def at(self, sizes):
        if not self.parts:
            return self.value if isinstance(self.value, int) else sizes[self.value]
        a, b = (part.at(sizes) for part in self.parts)
        return {"PROD": a * b, "CEIL_DIV": -(-a // b), "SUM": a + b}[self.value]


class Builder:
    """IExprBuilder."""

    def constant(self, value):
        return Dimension(value)

    def operation(self, operation, a, b):
        return Dimension(operation.name, a, b)


class Setter(dict):
    nbSymExprs = 0


class Launch:
    pass


trt.IDimensionExpr = Dimension
trt.DimsExprs = lambda count: [None] * count
trt.ISymExpr = type("ISymExpr", (), {"__init__": lambda self: None})

import tensorrt.plugin._lib as lib  # noqa: E402
from tensorrt.plugin._plugin_class import _TemplateAOTPlugin  # noqa: E402

from clq_export import tensorrt_network, tensorrt_plugin  # noqa: E402

HALF, FLOAT = trt.DataType.HALF, trt.DataType.FLOAT
CHANNELS = {"x": ("n", 64, "rows", "cols"), "b": (64,)}
INPUTS = {
    "DeformConv2d": [CHANNELS["x"], (64, 64, 3, 3), ("n", 18, "rows", "cols"), (64,)],
    "AlignedConv2d": [CHANNELS["x"], (9, 64, 64), ("n", 4, "rows", "cols"), (64,), (18, 4)],
}


def described(shape, dtype):
    """What TensorRT says of a tensor when it chooses types: dynamic sizes are -1."""
    found = trt.DynamicPluginTensorDesc()
    desc = trt.PluginTensorDesc()
    desc.dims = trt.Dims([size if isinstance(size, int) else -1 for size in shape])
    desc.type, desc.format = dtype, trt.TensorFormat.LINEAR
    found.desc = desc
    return found


def types_of(name, dtype):
    """Of inputs and output, when the maps have `dtype`; moves are float32 where they may be."""
    if name == "DeformConv2d":
        return [dtype] * 5
    return [dtype, dtype, FLOAT, dtype, FLOAT, dtype]


def asked(name, dtype):
    """Everything that TensorRT asks a plugin while it builds an engine, in its order."""
    definition = lib.QDP_REGISTRY[f"clq::{name}"]
    plugin = _TemplateAOTPlugin(name, "clq", definition.num_outputs)
    plugin.init(
        definition.register_func,
        {},
        definition.aot_impl_attr_names,
        definition.aot_impl_func,
        definition.autotune_attr_names,
        definition.autotune_func,
    )
    shapes = INPUTS[name]
    types = types_of(name, dtype)
    (output_type,) = plugin.get_output_data_types(types[:-1], [len(shape) for shape in shapes])
    expressions = [[Dimension(size) for size in shape] for shape in shapes]
    (output,) = plugin.get_output_shapes(expressions, [], Builder())
    sizes = {"n": 3, "rows": 13, "cols": 21}
    output_shape = [size.at(sizes) for size in output]
    tensors = [described(s, t) for s, t in zip([*shapes, ("n", 64, "rows", "cols")], types)]  # noqa: B905
    count = len(types)
    flat = plugin.get_supported_format_combinations(tensors, count - 1)
    combinations = [
        [one.type.name for one in flat[i : i + count]] for i in range(0, len(flat), count)
    ]
    assert all(one.format == trt.TensorFormat.LINEAR for one in flat)
    plugin.configure_plugin(tensors[:-1], tensors[-1:])
    tactics = plugin.get_valid_tactics()
    plugin.set_tactic(0)
    launch, setter = Launch(), Setter()
    plugin.get_launch_params(expressions, tensors, count - 1, launch, setter, Builder())
    kernel, ptx = plugin.get_kernel([t.desc for t in tensors[:-1]], [tensors[-1].desc])
    numbers = {key: getattr(launch, key).expr.at(sizes) for key in vars(launch)}
    return {
        "output_type": output_type.name,
        "output_shape": output_shape,
        "combinations": combinations,
        "tactics": tactics,
        "launch": numbers,
        "arguments": [setter[i].expr.at(sizes) for i in range(setter.nbSymExprs)],
        "argument_types": [str(setter[i].dtype.name) for i in range(setter.nbSymExprs)],
        "kernel": kernel,
        "ptx": ptx.decode(),
    }


OWNERS = {
    "trt": "",
    "trtp": "plugin.",
    "builder": "Builder.",
    "config": "IBuilderConfig.",
    "network": "INetworkDefinition.",
    "parser": "OnnxParser.",
    "profile": "IOptimizationProfile.",
}


def missing(module):
    """(Names of TensorRT that the module uses, those of them that do not exist)."""
    used = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in OWNERS and "(" not in "".join(rest):
                used.add(OWNERS[first] + ".".join(rest))
    absent = []
    for name in sorted(used):
        try:
            functools.reduce(getattr, name.split("."), trt)
        except AttributeError:
            absent.append(name)
    return sorted(used), absent


tensorrt_plugin.register_plugins(80, lazy=True)
tensorrt_plugin.register_plugins(80, lazy=True)  # the second time does nothing
result = {
    "version": trt.__version__,
    "names": {m.__name__: missing(m) for m in (tensorrt_network, tensorrt_plugin)},
    "plugins": {
        f"{name} {dtype.name}": asked(name, dtype) for name in INPUTS for dtype in (HALF, FLOAT)
    },
}
print("\n" + json.dumps(result))  # the bindings print lines of their own
