"""Runs the model of a bundle with ONNX Runtime on the CPU."""

from collections.abc import Sequence
from zipfile import BadZipFile

import numpy as np
import onnxruntime

from clq_serve.bundle import Bundle, InputSpec
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.errors import BundleError, EngineError
from clq_serve.preprocess import Pixels

__all__ = ["GOLDEN_BOX_PX", "GOLDEN_SCORE", "Candidates", "OnnxEngine", "check_golden"]

PROVIDER = "CPUExecutionProvider"
GOLDEN_FLOOR = 0.05  # golden candidates below this score are not compared
GOLDEN_SCORE = 1e-3  # largest accepted difference of a score
GOLDEN_BOX_PX = 0.1  # largest accepted difference of a box coordinate


class OnnxEngine:
    """One ONNX Runtime session; its `run` may be called from several threads.

    threads  how many threads one `run` may use, >= 1

    Raises BundleError if the graph has other inputs or outputs than the manifest describes.
    """

    def __init__(self, bundle: Bundle, threads: int, spinning: bool = False) -> None:
        if threads < 1:
            raise EngineError(f"threads is {threads}; accepted: a whole number, 1 or more")
        self._spec = bundle.manifest.input
        self._outputs = bundle.manifest.outputs.names
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.log_severity_level = 3  # errors only; they arrive as exceptions as well
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.model_path), options, providers=[PROVIDER]
            )
        except Exception as err:  # ONNX Runtime has no public base class for its errors
            raise BundleError(f"{bundle.model_path}: ONNX Runtime cannot load it: {err}") from err
        self.provider: str = self._session.get_providers()[0]
        if self.provider != PROVIDER:
            raise BundleError(f"asked ONNX Runtime for {PROVIDER}, it uses {self.provider}")
        _check_graph(self._session, bundle)

    def run(self, batch: Pixels) -> Candidates:
        """The candidates of a batch of prepared images.

        batch  (N, H, W, 3) uint8 RGB, N >= 1, H and W multiples of input.pad.multiple

        Raises EngineError if `batch` is something else, or if a result is not a finite number.
        """
        _check_batch(batch, self._spec)
        arrays = self._session.run(self._outputs, {self._spec.name: np.ascontiguousarray(batch)})
        for name, array in zip(self._outputs, arrays, strict=True):
            if not np.isfinite(array).all():
                raise EngineError(f"output {name!r} of the model has values that are not finite")
        return Candidates(*arrays)


def check_golden(engine: OnnxEngine, bundle: Bundle) -> int:
    """The number of golden examples, all of which the engine reproduced.

    Raises BundleError if the bundle's golden.npz is malformed or if any result differs by more than
    GOLDEN_SCORE or GOLDEN_BOX_PX.
    """
    examples = read_golden(bundle)
    for index, (images, expected) in enumerate(examples):
        score, box_px = candidate_difference(engine.run(images), expected, GOLDEN_FLOOR)
        if score > GOLDEN_SCORE or box_px > GOLDEN_BOX_PX:
            raise BundleError(
                f"{bundle.golden_path}: example {index}: this machine computes other results than "
                f"the exporter did: scores differ by {score:.3g} (accepted: {GOLDEN_SCORE}), "
                f"boxes by {box_px:.3g} px (accepted: {GOLDEN_BOX_PX})"
            )
    return len(examples)


def read_golden(bundle: Bundle) -> list[tuple[Pixels, Candidates]]:
    """The examples of golden.npz: input (1, H, W, 3), Candidates.  Raises BundleError."""
    path = bundle.golden_path
    fields = ("images", *Candidates._fields)
    try:
        # NpzFile reads .npz and nothing else; np.load would also accept a lone .npy
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as err:
        raise BundleError(f"{path}: is not a readable .npz file: {err}") from err
    count = len(arrays) // len(fields)
    expected = {f"{field}_{index}" for index in range(count) for field in fields}
    if count == 0 or set(arrays) != expected:
        raise BundleError(
            f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; accepted: "
            f"{', '.join(f'{field}_0' for field in fields)}, then the same with _1 and so on"
        )
    return [
        (arrays[f"images_{index}"], Candidates(*(arrays[f"{f}_{index}"] for f in fields[1:])))
        for index in range(count)
    ]


def _check_graph(session: onnxruntime.InferenceSession, bundle: Bundle) -> None:
    spec, count = bundle.manifest.input, bundle.manifest.outputs.count
    wanted = dict.fromkeys(bundle.manifest.outputs.names, ("tensor(float)", [None, count]))
    wanted[bundle.manifest.outputs.boxes] = ("tensor(float)", [None, count, 4])
    wanted[bundle.manifest.outputs.labels] = ("tensor(int64)", [None, count])
    _check_nodes(
        "input", session.get_inputs(), {spec.name: ("tensor(uint8)", [None] * 3 + [3])}, bundle
    )
    _check_nodes("output", session.get_outputs(), wanted, bundle)


def _check_nodes(
    side: str,
    nodes: Sequence[onnxruntime.NodeArg],
    wanted: dict[str, tuple[str, list[int | None]]],
    bundle: Bundle,
) -> None:
    """Names, types, ranks and fixed sides; None in a wanted shape is a side of any size."""
    where = f"{bundle.model_path}: {side}"
    names = {node.name for node in nodes}
    if names != set(wanted):
        raise BundleError(f"{where}s are {sorted(names)}; the manifest says {sorted(wanted)}")
    for node in nodes:
        dtype, shape = wanted[node.name]
        if node.type != dtype:
            raise BundleError(f"{where} {node.name!r} is {node.type}; accepted: {dtype}")
        fits = len(node.shape) == len(shape) and all(
            have == want or not isinstance(have, int)
            for have, want in zip(node.shape, shape, strict=True)
        )
        if not fits:
            raise BundleError(
                f"{where} {node.name!r} has shape {node.shape}; accepted: {shape}, None = dynamic"
            )


def _check_batch(batch: Pixels, spec: InputSpec) -> None:
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape:
        raise EngineError(
            f"the batch is {batch.dtype} of shape {batch.shape}; "
            "accepted: uint8 of shape (N, H, W, 3)"
        )
    height, width = batch.shape[1:3]
    if height % spec.pad.multiple or width % spec.pad.multiple:
        raise EngineError(
            f"the batch has images of {width} x {height} pixels; accepted: multiples of "
            f"{spec.pad.multiple}"
        )
