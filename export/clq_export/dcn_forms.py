"""The three forms that the deformable convolution of a graph can have: `--dcn`.

standard  the ONNX operator DeformConv: ONNX Runtime from 1.25, TensorRT from 10.1 through its own
          plugin
plugin    clq::DeformConv2d, a function of the model whose body is that operator.  A runtime without
          our plugin runs the body; TensorRT with it (tensorrt_plugin.py) runs the plugin
taps      bilinear GridSample taps and one matrix product, for runtimes without DeformConv

torch exports the standard form; the others are made from it here, so that there is one forward.
All three are for what CLQ has: 3x3, stride 1, padding 1, one group, one offset group, no mask.
"""

import onnx
from onnx import helper, inliner, parser

from clq_export.choices import DcnForm
from clq_export.errors import ExportError

DOMAIN = "clq"
PLUGIN = "DeformConv2d"
ALIGNED = "AlignedConv2d"  # with its offsets and its ReLU: tensorrt_graph.py
_TAPS = "DeformConv3x3Taps"
_KERNEL = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
_WANTED = _KERNEL | {"group": 1, "offset_group": 1}

# The attributes tell TensorRT which plugin the node is, and that its compiled form is wanted.
_PLUGIN_FUNCTION = """
<domain: "clq", opset_import: ["" : %d]>
DeformConv2d <plugin_namespace, plugin_version, aot> (x, w, offset, b) => (y)
{
    y = DeformConv <kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1],
                    dilations = [1, 1], group = 1, offset_group = 1> (x, w, offset, b)
}
"""

# Positions in cells become GridSample's coordinates with align_corners=0, where cell i of n lies at
# (2 i + 1) / n - 1.
_TAPS_FUNCTION = """
<domain: "clq", opset_import: ["" : %d]>
DeformConv3x3Taps (x, w, offset, b) => (y)
{
    n = Shape <start = 0, end = 1> (x)
    c = Shape <start = 1, end = 2> (x)
    o = Shape <start = 0, end = 1> (w)
    h = Shape <start = 2, end = 3> (x)
    v = Shape <start = 3, end = 4> (x)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    nine = Constant <value_ints = [9]> ()
    two = Constant <value_ints = [2]> ()
    half = Constant <value_float = 0.5> ()
    unit = Constant <value_float = 1.0> ()
    double = Constant <value_float = 2.0> ()
    tap_y = Constant <value = float[9, 1, 1] {-1, -1, -1, 0, 0, 0, 1, 1, 1}> ()
    tap_x = Constant <value = float[9, 1, 1] {-1, 0, 1, -1, 0, 1, -1, 0, 1}> ()
    pairs = Concat <axis = 0> (n, nine, two, h, v)
    moved = Reshape (offset, pairs)
    dy5, dx5 = Split <axis = 2, num_outputs = 2> (moved)
    axis2 = Constant <value_ints = [2]> ()
    dy = Squeeze (dy5, axis2)
    dx = Squeeze (dx5, axis2)
    h0 = Squeeze (h, first)
    v0 = Squeeze (v, first)
    rows_i = Range (zero, h0, one)
    cols_i = Range (zero, v0, one)
    rows_f = Cast <to = 1> (rows_i)
    cols = Cast <to = 1> (cols_i)
    last = Constant <value_ints = [1]> ()
    rows = Unsqueeze (rows_f, last)
    base_y = Add (tap_y, rows)
    base_x = Add (tap_x, cols)
    at_y = Add (dy, base_y)
    at_x = Add (dx, base_x)
    middle_y = Add (at_y, half)
    middle_x = Add (at_x, half)
    h_f = Cast <to = 1> (h)
    v_f = Cast <to = 1> (v)
    per_row = Div (double, h_f)
    per_col = Div (double, v_f)
    far_y = Mul (middle_y, per_row)
    far_x = Mul (middle_x, per_col)
    grid_y = Sub (far_y, unit)
    grid_x = Sub (far_x, unit)
    minus = Constant <value_ints = [-1]> ()
    gx = Unsqueeze (grid_x, minus)
    gy = Unsqueeze (grid_y, minus)
    grid5 = Concat <axis = -1> (gx, gy)
    nine_h = Mul (nine, h)
    grid_shape = Concat <axis = 0> (n, nine_h, v, two)
    grid = Reshape (grid5, grid_shape)
    taps4 = GridSample <align_corners = 0, mode = "linear", padding_mode = "zeros"> (x, grid)
    c9 = Mul (c, nine)
    cells = Mul (h, v)
    taps_shape = Concat <axis = 0> (n, c9, cells)
    taps = Reshape (taps4, taps_shape)
    w_shape = Concat <axis = 0> (o, c9)
    w2 = Reshape (w, w_shape)
    flat = MatMul (w2, taps)
    bias = Unsqueeze (b, last)
    biased = Add (flat, bias)
    y_shape = Concat <axis = 0> (n, o, h, v)
    y = Reshape (biased, y_shape)
}
"""


def with_dcn(graph: onnx.ModelProto, form: DcnForm) -> onnx.ModelProto:
    """The graph with every DeformConv in the form asked for; `graph` itself is changed.

    Raises ExportError if a DeformConv is another one than CLQ's.
    """
    if form == "standard":
        return graph
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    deformable = [node for node in graph.graph.node if node.op_type == "DeformConv"]
    for node in deformable:
        _check(node)
        del node.attribute[:]
        node.domain = DOMAIN
        if form == "plugin":
            node.op_type = PLUGIN
            attributes = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}
            node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        else:
            node.op_type = _TAPS
    if not deformable:
        return graph
    text = _PLUGIN_FUNCTION if form == "plugin" else _TAPS_FUNCTION
    graph.functions.append(parser.parse_function(text % opset))
    graph.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return graph if form == "plugin" else inliner.inline_local_functions(graph)


def _check(node: onnx.NodeProto) -> None:
    """Raises ExportError if the node is not a 3x3 of stride 1 with a bias and without a mask."""
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    for name, value in given.items():
        have = list(value) if isinstance(_WANTED.get(name), list) else value
        if have != _WANTED.get(name):
            raise ExportError(
                f"{node.name}: {name} is {have}; the forms plugin and taps take {_WANTED.get(name)}"
            )
    if len(node.input) != 4 or not all(node.input) or given.get("pads") is None:
        raise ExportError(
            f"{node.name}: has inputs {list(node.input)}; the forms plugin and taps take "
            "x, weight, offset and bias, with padding 1"
        )
