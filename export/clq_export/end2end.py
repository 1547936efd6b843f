"""A graph with everything in it, for programs that have ONNX Runtime and nothing of ours.

Input `image`, uint8 (H, W, 3): upright RGB, resized as the manifest's input.resize says
(docs/bundle.md has the lines).  Inputs `score`, `iou` and `max` may be left
out; their defaults are the manifest's thresholds.  Outputs of D <= max detections, by descending
score: `boxes` (D, 4) x1 y1 x2 y2 in pixels, clipped to the image; `scores`, `labels`, `cls_scores`,
`qualities` (D,).  Detections, ties and thresholds are those of the service.
"""

import os
from pathlib import Path

import onnx
from onnx import compose, helper, parser

from clq_export.errors import ExportError
from clq_serve.bundle import Bundle

# Padding has a colour, and Pad one number: the pixels are taken relative to the colour.
_BEFORE = """
before (uint8[H, W, 3] image) => (uint8[1, PH, PW, 3] padded, int64[2] size)
{
    size = Shape <start = 0, end = 2> (image)
    zero = Constant <value_ints = [0]> ()
    multiple = Constant <value_ints = [%(multiple)d]> ()
    negative = Neg (size)
    missing = Mod (negative, multiple)
    none3 = Constant <value_ints = [0, 0, 0]> ()
    pads = Concat <axis = 0> (none3, missing, zero)
    colour = Constant <value = int32[3] {%(red)d, %(green)d, %(blue)d}> ()
    wide = Cast <to = 6> (image)
    relative = Sub (wide, colour)
    framed = Pad <mode = "constant"> (relative, pads)
    absolute = Add (framed, colour)
    pixels = Cast <to = 2> (absolute)
    padded = Unsqueeze (pixels, zero)
}
"""

# As Detector._finish and ClassNms: clipped first; a box that lies in the padding has no score.
_AFTER = """
after (float[1, K, 4] in_boxes, float[1, K] in_scores, int64[1, K] in_labels, float[1, K] in_cls,
       float[1, K] in_qualities, int64[2] in_size, float score, float iou, int64 max)
    => (float[D, 4] boxes, float[D] scores, int64[D] labels, float[D] cls_scores,
        float[D] qualities)
{
    first = Constant <value_ints = [0]> ()
    every = Constant <value_ints = [1]> ()
    all_boxes = Squeeze (in_boxes, first)
    all_scores = Squeeze (in_scores, first)
    all_labels = Squeeze (in_labels, first)
    all_cls = Squeeze (in_cls, first)
    all_qualities = Squeeze (in_qualities, first)

    swap = Constant <value_ints = [1, 0, 1, 0]> ()
    size_f = Cast <to = 1> (in_size)
    limit = Gather <axis = 0> (size_f, swap)
    nought = Constant <value_float = 0.0> ()
    not_below = Max (all_boxes, nought)
    clipped = Min (not_below, limit)
    at_2 = Constant <value_ints = [2]> ()
    at_4 = Constant <value_ints = [4]> ()
    corner1 = Slice (clipped, first, at_2, every)
    corner2 = Slice (clipped, at_2, at_4, every)
    right_of = Greater (corner2, corner1)
    right_of_i = Cast <to = 6> (right_of)
    inside_i = ReduceMin <keepdims = 0> (right_of_i, every)
    inside = Cast <to = 9> (inside_i)
    usable = Where (inside, all_scores, nought)

    classes = Constant <value = int64[%(classes)d, 1] {%(numbers)s}> ()
    of_class = Equal (all_labels, classes)
    minus = Constant <value_float = -1.0> ()
    per_class = Where (of_class, usable, minus)
    nms_boxes = Unsqueeze (clipped, first)
    nms_scores = Unsqueeze (per_class, first)
    selected = NonMaxSuppression (nms_boxes, nms_scores, max, iou, score)
    box_of = Constant <value_int = 2> ()
    kept = Gather <axis = 1> (selected, box_of)

    slots = Shape (usable)
    nothing = ConstantOfShape <value = float[1] {-1.0}> (slots)
    kept_scores = Gather <axis = 0> (usable, kept)
    ranked = ScatterElements <axis = 0> (nothing, kept, kept_scores)
    found = Shape (kept)
    max_1 = Reshape (max, every)
    count = Min (found, max_1)
    scores, best = TopK <axis = 0, largest = 1, sorted = 1> (ranked, count)
    boxes = Gather <axis = 0> (clipped, best)
    labels = Gather <axis = 0> (all_labels, best)
    cls_scores = Gather <axis = 0> (all_cls, best)
    qualities = Gather <axis = 0> (all_qualities, best)
}
"""


def write_end2end(bundle: Bundle, path: Path) -> None:
    """Writes the graph of the bundle with padding and suppression inside to the file `path`.

    Raises ExportError if the file cannot be written; what was there before stays then.
    """
    model = end2end_graph(bundle)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_bytes(model.SerializeToString())
        os.replace(beside, path)
    except OSError as err:
        beside.unlink(missing_ok=True)
        raise ExportError(f"{path}: cannot be written: {err.strerror or err}") from err


def end2end_graph(bundle: Bundle) -> onnx.ModelProto:
    """The graph, checked."""
    manifest = bundle.manifest
    core = onnx.load(bundle.model_path)
    red, green, blue = manifest.input.pad.value
    colour = {"red": red, "green": green, "blue": blue, "multiple": manifest.input.pad.multiple}
    count = len(manifest.classes)
    classes = {"classes": count, "numbers": ", ".join(map(str, range(count)))}
    before = _model(_BEFORE % colour, core)
    after = compose.add_prefix(_model(_AFTER % classes, core), "after/", rename_inputs=False)
    core = compose.add_prefix(core, "model/")
    o = manifest.outputs
    joined = compose.merge_models(
        before,
        core,
        [("padded", f"model/{manifest.input.name}")],
        outputs=["size", *(f"model/{name}" for name in o.names)],
    )
    names = dict(
        zip(o.names, ("in_boxes", "in_scores", "in_labels", "in_cls", "in_qualities"), strict=True)
    )
    links = [(f"model/{name}", inside) for name, inside in names.items()] + [("size", "in_size")]
    whole = compose.merge_models(joined, after, links)
    for value in whole.graph.output:
        _rename(whole, value.name, value.name.removeprefix("after/"))
    thresholds = manifest.thresholds
    for name, number, kind in (
        ("score", thresholds.score, onnx.TensorProto.FLOAT),
        ("iou", thresholds.iou, onnx.TensorProto.FLOAT),
        ("max", thresholds.max, onnx.TensorProto.INT64),
    ):
        whole.graph.initializer.append(helper.make_tensor(name, kind, [], [number]))
    del whole.metadata_props[:]
    helper.set_model_props(
        whole,
        {
            "clq.model": f"{manifest.name}/{manifest.version}",
            "clq.digest": bundle.digest,
            "clq.classes": ",".join(manifest.class_names),
        },
    )
    whole.producer_name = "clq-export"
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _model(text: str, like: onnx.ModelProto) -> onnx.ModelProto:
    graph = parser.parse_graph(text)
    return helper.make_model(
        graph, opset_imports=list(like.opset_import), ir_version=like.ir_version
    )


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Renames an output of the graph, where it is made and where it is listed."""
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]
    for value in model.graph.output:
        if value.name == old:
            value.name = new
