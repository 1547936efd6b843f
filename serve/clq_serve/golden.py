"""The golden examples of a bundle: inputs and what the exporter computed for them."""

import io
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from clq_serve.bundle import GOLDEN_FILE, Bundle, read_listed
from clq_serve.candidates import Candidates
from clq_serve.compare import candidate_difference
from clq_serve.detector import Engine
from clq_serve.errors import BundleError
from clq_serve.preprocess import Pixels

GOLDEN_FLOOR = 0.05  # golden candidates below this score are not compared
GOLDEN_SCORE = 1e-3  # largest accepted difference of a score
GOLDEN_BOX_PX = 0.1  # largest accepted difference of a box coordinate


class Tolerance(NamedTuple):
    """The largest differences from the golden results with which an engine is accepted."""

    score: float = GOLDEN_SCORE
    box_px: float = GOLDEN_BOX_PX


# Where another processor's float kernels differ in the last bit, an 8-bit layer rounds to the other
# side here and there, so its scores differ by more than those of a float bundle.
EIGHT_BITS = Tolerance(score=0.05, box_px=2.0)


class Example(NamedTuple):
    """Prepared images (N, H, W, 3) uint8 and the candidates that belong to them."""

    images: Pixels
    expected: Candidates


def tolerance_of(bundle: Bundle) -> Tolerance:
    """What ONNX Runtime may differ by, of the precision that the manifest names."""
    return EIGHT_BITS if bundle.manifest.precision.startswith("int8") else Tolerance()


def check_golden(engine: Engine, bundle: Bundle) -> int:
    """The number of golden examples, all of which the engine reproduced.

    Raises BundleError if golden.npz is malformed or a result differs, see `compare_golden`.
    """
    examples = read_golden(bundle)
    compare_golden(engine, examples, bundle)
    return len(examples)


def compare_golden(
    engine: Engine,
    examples: list[Example],
    bundle: Bundle,
    accepted: Tolerance = Tolerance(),  # noqa: B008  (it is immutable)
) -> None:
    """Nothing, if the engine reproduces the examples, which are those of `bundle`.

    Raises BundleError if any result differs by more than is accepted.
    """
    for index, (images, expected) in enumerate(examples):
        score, box_px = candidate_difference(engine.run(images), expected, GOLDEN_FLOOR)
        if score > accepted.score or box_px > accepted.box_px:
            raise BundleError(
                f"{bundle.golden_path}: example {index}: this machine computes other results than "
                f"the exporter did: scores differ by {score:.3g} (accepted: {accepted.score}), "
                f"boxes by {box_px:.3g} px (accepted: {accepted.box_px})"
            )


def read_golden(bundle: Bundle) -> list[Example]:
    """The examples of golden.npz.  Raises BundleError."""
    path = bundle.golden_path
    fields = ("images", *Candidates._fields)
    try:
        # NpzFile reads .npz and nothing else; np.load would also accept a lone .npy
        data = io.BytesIO(read_listed(bundle, GOLDEN_FILE))
        with np.lib.npyio.NpzFile(data, allow_pickle=False) as archive:
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
        Example(
            arrays[f"images_{index}"], Candidates(*(arrays[f"{f}_{index}"] for f in fields[1:]))
        )
        for index in range(count)
    ]
