"""Where TensorRT plans lie, what they are called, and which one may be loaded.

A plan is a derived file: the model compiled for one TensorRT version and one kind of GPU.  It lies
in the folder engines/ of its bundle, or in the folder of the setting `engine_cache`, with a
sidecar of the same name and .json that says what it was made from and for.  Loading a plan runs
code that is in it, so plans come from the same hands as the service itself.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from clq_serve.bundle import ENGINES_FOLDER, Bundle, Section, describe_file
from clq_serve.errors import BundleError
from clq_serve.golden import Tolerance

Shape = tuple[int, int, int, int]


class Profile(Section):
    """The input shapes (N, H, W, 3) that one optimization profile takes."""

    min: Shape
    opt: Shape
    max: Shape


class PlanInfo(Section):
    """The sidecar, version 1 of the format.

    tensorrt            version, e.g. "11.4.0.106"
    compute_capability  of the GPU it was built on, e.g. "9.0"
    model_digest        Bundle.digest of the bundle it was built from
    precision           for people, e.g. "fp16"
    accepted_score      largest differences from the golden results that its maker accepted;
    accepted_box_px     the service accepts no larger ones
    profiles            in the order of the engine
    """

    format: Literal["clq-plan"]
    format_version: Literal[1]
    tensorrt: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    model_digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    precision: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    accepted_score: Annotated[float, Field(ge=0)]
    accepted_box_px: Annotated[float, Field(ge=0)]
    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=1)]

    @property
    def file_name(self) -> str:
        """Name of the plan; the sidecar has .json in place of .plan."""
        capability = self.compute_capability.replace(".", "")
        digest = self.model_digest.removeprefix("sha256:")[:16]
        return f"{digest}-trt{self.tensorrt}-sm{capability}-{self.precision}.plan"


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that may be loaded here; `data` are its bytes, which its sidecar describes."""

    path: Path
    info: PlanInfo
    data: bytes


def plan_folders(bundle: Bundle, cache: Path | None) -> list[Path]:
    """Where plans of the bundle are looked for, in this order."""
    return [bundle.path / ENGINES_FOLDER, *([] if cache is None else [cache])]


def find_plan(
    bundle: Bundle, cache: Path | None, *, tensorrt: str, compute_capability: str
) -> Plan:
    """The plan of the bundle for this TensorRT and this GPU, its digest checked.

    Raises BundleError if there is none, with what each plan that is there was built for; if a
    sidecar or a name is wrong; or if the fitting plan is not the file that its sidecar describes.
    """
    folders = plan_folders(bundle, cache)
    here = {"tensorrt": tensorrt, "compute_capability": compute_capability}
    wanted = {**here, "model_digest": bundle.digest}
    others: list[str] = []
    for path in _plans(folders):
        info = read_plan_info(path)
        wrong = _differences(info, wanted)
        if not wrong:
            return Plan(path, info, _checked_bytes(path, info))
        others.append(f"{path.name}: {'; '.join(wrong)}")
    raise BundleError(
        f"{bundle.path}: there is no plan for TensorRT {tensorrt} and compute capability "
        f"{compute_capability} in {' or '.join(map(str, folders))}; found: "
        f"{' | '.join(others) or 'nothing'}"
    )


def read_plan_info(path: Path) -> PlanInfo:
    """The sidecar of the plan `path`.  Raises BundleError."""
    sidecar = path.with_suffix(".json")
    try:
        info = PlanInfo.model_validate_json(sidecar.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: its sidecar {sidecar.name} is not there") from None
    except OSError as err:
        raise BundleError(f"{sidecar}: cannot be read: {err}") from err
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BundleError(f"{sidecar}: {key}: {first['input']!r}: {first['msg']}") from None
    if path.name != info.file_name:
        raise BundleError(f"{path}: its sidecar describes {info.file_name}")
    return info


def write_plan(
    plan: bytes,
    folder: Path,
    bundle: Bundle,
    *,
    tensorrt: str,
    compute_capability: str,
    precision: str,
    accepted: Tolerance,
    profiles: tuple[Profile, ...],
) -> Path:
    """Path of the plan, written with its sidecar into `folder`; each beside first, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{os.getpid()}.tmp"
    beside.write_bytes(plan)
    entry = describe_file(beside)
    info = PlanInfo(
        format="clq-plan",
        format_version=1,
        tensorrt=tensorrt,
        compute_capability=compute_capability,
        model_digest=bundle.digest,
        precision=precision,
        accepted_score=accepted.score,
        accepted_box_px=accepted.box_px,
        profiles=profiles,
        sha256=entry.sha256,
        bytes=entry.bytes,
    )
    path = folder / info.file_name
    os.replace(beside, path)
    beside.write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path.with_suffix(".json"))
    return path


def _plans(folders: Iterable[Path]) -> list[Path]:
    found = [path for folder in folders for path in sorted(folder.glob("*.plan"))]
    return [path for path in found if not path.name.startswith(".")]


def _differences(info: PlanInfo, wanted: dict[str, str]) -> list[str]:
    """What keeps the plan from running here, each with both values."""
    return [
        f"{key} is {getattr(info, key)}, wanted {value}"
        for key, value in wanted.items()
        if getattr(info, key) != value
    ]


def _checked_bytes(path: Path, info: PlanInfo) -> bytes:
    data = path.read_bytes()
    if len(data) != info.bytes:
        raise BundleError(f"{path}: has {len(data)} bytes, its sidecar says {info.bytes}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != info.sha256:
        raise BundleError(f"{path}: SHA-256 is {digest}, its sidecar says {info.sha256}")
    return data
