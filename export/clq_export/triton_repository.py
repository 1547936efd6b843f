"""A bundle as a model of NVIDIA Triton's repository: NAME/config.pbtxt, labels.txt, 1/model.onnx.

Triton runs the graph of the bundle as it is: prepared images in, candidates out.  Decoding,
resizing, padding and suppression stay with its caller; docs/bundle.md says how they are done.
"""

import os
import shutil
from pathlib import Path

from clq_export.errors import ExportError
from clq_serve.bundle import Bundle

_HEAD = """\
# Written by clq-export from {name}/{version}, {digest}.
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
"""

_TENSOR = '  {{ name: "{name}" data_type: {kind} dims: [{dims}]{more} }}'

# Images of unlike padded size do not share a batch: Triton batches equal shapes only.
_BATCHING = """\
dynamic_batching {{
  max_queue_delay_microseconds: {delay_us}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout_us}
    allow_timeout_override: true
    max_queue_size: {queue}
  }}
}}
"""

_WARMUP = """\
model_warmup [
{entries}
]
"""

_WARMUP_ENTRY = (
    '  {{ name: "{name}" batch_size: {batch} inputs {{ key: "{input}" value '
    "{{ data_type: TYPE_UINT8 dims: [{height}, {width}, 3] zero_data: true }} }} }}"
)


def write_triton_repository(
    bundle: Bundle, folder: Path, *, max_batch: int = 8, delay_us: int = 2000, queue: int = 64
) -> Path:
    """The folder of the new model inside the repository `folder`.

    max_batch  images that share a call at most
    delay_us   how long Triton waits for a batch to fill, microseconds
    queue      requests that wait at most

    Raises ExportError if the repository has a model of that name, or cannot be written.
    """
    manifest = bundle.manifest
    final = folder / manifest.name
    if final.exists():
        raise ExportError(f"{final}: exists already; give another folder, or remove it")
    beside = folder / f".{manifest.name}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "1").mkdir(parents=True)
        shutil.copyfile(bundle.model_path, beside / "1" / "model.onnx")
        labels = "".join(f"{name}\n" for name in manifest.class_names)
        (beside / "labels.txt").write_text(labels, "utf-8")
        config = config_text(bundle, max_batch=max_batch, delay_us=delay_us, queue=queue)
        (beside / "config.pbtxt").write_text(config, "utf-8")
        os.replace(beside, final)
    except OSError as err:
        raise ExportError(f"{final}: cannot be written: {err.strerror or err}") from err
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return final


def config_text(bundle: Bundle, *, max_batch: int, delay_us: int, queue: int) -> str:
    """config.pbtxt: Triton's ModelConfig message as text; dims are without the batch."""
    manifest = bundle.manifest
    outputs, count = manifest.outputs, manifest.outputs.count
    tensors = [
        (outputs.boxes, "TYPE_FP32", f"{count}, 4", ""),
        (outputs.scores, "TYPE_FP32", f"{count}", ""),
        (outputs.labels, "TYPE_INT64", f"{count}", ' label_filename: "labels.txt"'),
        (outputs.cls_scores, "TYPE_FP32", f"{count}", ""),
        (outputs.qualities, "TYPE_FP32", f"{count}", ""),
    ]
    listed = ",\n".join(
        _TENSOR.format(name=name, kind=kind, dims=dims, more=more)
        for name, kind, dims, more in tensors
    )
    image = _TENSOR.format(name=manifest.input.name, kind="TYPE_UINT8", dims="-1, -1, 3", more="")
    return (
        _HEAD.format(
            name=manifest.name,
            version=manifest.version,
            digest=bundle.digest,
            max_batch=max_batch,
        )
        + f"input [\n{image}\n]\noutput [\n{listed}\n]\n"
        + _BATCHING.format(delay_us=delay_us, timeout_us=30_000_000, queue=queue)
        + _WARMUP.format(entries=",\n".join(_warm_ups(bundle, max_batch)))
    )


def _warm_ups(bundle: Bundle, max_batch: int) -> list[str]:
    """One image and a full batch, of the largest padded size."""
    spec = bundle.manifest.input
    height, width = (
        -(-side // spec.pad.multiple) * spec.pad.multiple
        for side in (spec.resize.shorter_px, spec.resize.longer_px)
    )
    return [
        _WARMUP_ENTRY.format(
            name=f"batch_{batch}", batch=batch, input=spec.name, height=height, width=width
        )
        for batch in sorted({1, max_batch})
    ]
