"""What a bundle is, and whether a folder is one.

A bundle is the folder NAME/VERSION/ with manifest.json and the files that the manifest lists.
Nothing outside the manifest is believed: schema, folder names, sizes and SHA-256 digests are
checked at load.
"""

import hashlib
import importlib.resources
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clq_serve.errors import BundleError
from clq_serve.preprocess import InputRule

MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.npz"
MANIFEST_FILE = "manifest.json"
ENGINES_FOLDER = "engines"  # may be there: TensorRT plans, derived from the model
BUILTIN_MODEL = "webui-nano"
MODEL_NAME = r"[a-z0-9][a-z0-9._-]*"  # what the name of a model may be

Byte = Annotated[int, Field(ge=0, le=255)]
Whole = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A part of the manifest: no unknown keys, no conversion between types, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ClassEntry(Section):
    """One class; its index in the list is the label that the model gives."""

    name: Annotated[str, Field(pattern=r"^[^,]+$")]  # `?classes=a,b` separates names by commas
    category_id: int  # the data set's own id


class ResizeRule(Section):
    shorter_px: Whole
    longer_px: Whole
    upscale: bool
    filter: Literal["bilinear"]
    largest_scale: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.shorter_px > self.longer_px:
            raise ValueError(
                f"shorter_px {self.shorter_px} is more than longer_px {self.longer_px}"
            )
        return self


class PadRule(Section):
    multiple: Whole
    value: tuple[Byte, Byte, Byte]


class InputSpec(Section):
    """The one input tensor and how an image becomes it."""

    name: Text
    dtype: Literal["uint8"]
    layout: Literal["NHWC"]
    color: Literal["RGB"]
    resize: ResizeRule
    pad: PadRule
    background: tuple[Byte, Byte, Byte]

    @property
    def rule(self) -> InputRule:
        """The same in the terms of `clq_serve.preprocess`."""
        return InputRule(
            shorter_px=self.resize.shorter_px,
            longer_px=self.resize.longer_px,
            upscale=self.resize.upscale,
            multiple=self.pad.multiple,
            pad_value=self.pad.value,
            background=self.background,
            largest_scale=self.resize.largest_scale,
        )


class OutputSpec(Section):
    """Names of the output tensors; `count` is K, the number of candidates per image."""

    boxes: Text
    scores: Text
    labels: Text
    cls_scores: Text
    qualities: Text
    count: Whole

    @property
    def names(self) -> list[str]:
        """In the order of the fields of `Candidates`."""
        return [self.boxes, self.scores, self.labels, self.cls_scores, self.qualities]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two outputs share a name: {', '.join(self.names)}")
        return self


class Thresholds(Section):
    """Defaults of the service."""

    score: Fraction
    iou: Fraction
    max: Annotated[int, Field(ge=1, le=1000)]


class FileEntry(Section):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Metric(Section):
    """A measured result, with the command that measured it."""

    data: Text
    images: Whole
    AP: Fraction
    AP50: Fraction
    AP75: Fraction
    command: Text


class ParityEntry(Section):
    """How far one runtime's results are from the reference; `clq-export verify` measures it.

    runtime          e.g. "openvino", with its version
    dcn              form of the deformable convolution that it ran, e.g. "taps"
    worst_score      largest difference of a score, of all images
    worst_box_px     largest difference of a box coordinate
    labels_changed   candidates that have another class there, or are not there
    date             UTC, e.g. "2026-11-24"
    """

    runtime: Text
    version: Text
    device: Text
    dcn: Text
    images: Whole
    worst_score: Annotated[float, Field(ge=0.0)]
    worst_box_px: Annotated[float, Field(ge=0.0)]
    labels_changed: Annotated[int, Field(ge=0)]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Manifest(Section):
    """manifest.json, version 1 of the format."""

    format: Literal["clq-bundle"]
    format_version: Literal[1]
    name: Annotated[str, Field(pattern=f"^{MODEL_NAME}$")]
    version: Whole
    classes: Annotated[tuple[ClassEntry, ...], Field(min_length=1)]
    input: InputSpec
    outputs: OutputSpec
    thresholds: Thresholds
    alpha: Annotated[float, Field(ge=0.0)]
    files: dict[FileName, FileEntry]
    trained_on: str
    metrics: tuple[Metric, ...]
    licence: Text
    created: dict[str, str]
    parity: tuple[ParityEntry, ...] = ()  # bundles before 2026-11-24 have none

    @property
    def class_names(self) -> list[str]:
        return [entry.name for entry in self.classes]

    @property
    def precision(self) -> str:
        """What the graph computes in: `float32`, `float16` or `int8 for` a runtime."""
        return self.created.get("precision", "float32")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [str(entry.category_id) for entry in self.classes]
        for key, values in (("name", self.class_names), ("category_id", ids)):
            repeated = sorted({value for value in values if values.count(value) > 1})
            if repeated:
                raise ValueError(f"classes: {key} used more than once: {', '.join(repeated)}")
        for required in (MODEL_FILE, GOLDEN_FILE):
            if required not in self.files:
                raise ValueError(f"files: {required} is not listed")
        if MANIFEST_FILE in self.files:
            raise ValueError(f"files: {MANIFEST_FILE} cannot list itself")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose files are what its manifest says.

    digest       "sha256:" and the hex digest of model.onnx
    fingerprint  hex digest of the manifest without `parity`, and so of all files: two bundles with
                 the same graph may still answer differently, e.g. by other class names
    """

    manifest: Manifest
    path: Path
    digest: str
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        text = self.manifest.model_dump_json(exclude={"parity"})
        object.__setattr__(self, "fingerprint", hashlib.sha256(text.encode()).hexdigest())

    @property
    def model_path(self) -> Path:
        return self.path / MODEL_FILE

    @property
    def golden_path(self) -> Path:
        return self.path / GOLDEN_FILE


def load_bundle(path: Path) -> Bundle:
    """The bundle in the folder `path`, with every file checked.

    Raises BundleError; its message names the file, the key, the value and what is accepted.
    """
    folder = path.resolve()
    if not folder.is_dir():
        raise BundleError(f"{path}: there is no such folder; a bundle is a folder NAME/VERSION/")
    manifest = read_manifest(folder / MANIFEST_FILE)
    if (folder.parent.name, folder.name) != (manifest.name, str(manifest.version)):
        raise BundleError(
            f"{folder}: the folder is {folder.parent.name}/{folder.name} but its manifest says "
            f"{manifest.name}/{manifest.version}"
        )
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)
    unlisted = sorted(
        item.name
        for item in folder.iterdir()
        if item.name not in manifest.files
        and item.name != MANIFEST_FILE
        and not (item.name == ENGINES_FOLDER and item.is_dir())
        and not item.name.startswith(".")
    )
    if unlisted:
        raise BundleError(f"{folder}: not listed in manifest.json: {', '.join(unlisted)}")
    return Bundle(manifest, folder, f"sha256:{manifest.files[MODEL_FILE].sha256}")


def read_manifest(path: Path) -> Manifest:
    """The manifest in the file `path`, schema checked, files not yet.  Raises BundleError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as err:
        raise BundleError(f"{path}: cannot be read: {err}") from err
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as err:
        problems = "; ".join(_sentence(dict(problem)) for problem in err.errors())
        raise BundleError(f"{path}: {problems}") from None


def read_listed(bundle: Bundle, name: str) -> bytes:
    """The bytes of a file of the bundle, which are those that the manifest lists.

    Checked again because a bundle can be replaced while it is being loaded.  Raises BundleError.
    """
    path = bundle.path / name
    try:
        data = path.read_bytes()
    except OSError as err:
        raise BundleError(f"{path}: cannot be read: {err}") from err
    digest = hashlib.sha256(data).hexdigest()
    if digest != bundle.manifest.files[name].sha256:
        raise BundleError(f"{path}: was changed while the bundle was in use; load it again")
    return data


def write_manifest(manifest: Manifest, folder: Path) -> Path:
    """The path of the manifest.json written into `folder`: beside first, then renamed over.

    Raises OSError, and leaves the folder as it was, if it cannot be written.
    """
    path = folder / MANIFEST_FILE
    beside = folder / f".{MANIFEST_FILE}.tmp"
    try:
        beside.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    return path


def describe_file(path: Path) -> FileEntry:
    """The manifest's entry for the file `path`."""
    return FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 digest of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def builtin_bundle_path(name: str = BUILTIN_MODEL) -> Path:
    """The folder of the newest version of a model that ships inside this package.

    Raises BundleError if this installation has no such model.
    """
    models = Path(str(importlib.resources.files("clq_serve"))) / "models"
    folder = models / name
    versions = [int(item.name) for item in folder.glob("*") if re.fullmatch(r"[1-9]\d*", item.name)]
    if not versions:
        present = ", ".join(sorted(item.name for item in models.glob("*") if item.is_dir()))
        raise BundleError(f"there is no built-in model {name!r}; built in: {present or 'none'}")
    return folder / str(max(versions))


def _check_file(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: there is no such file, but manifest.json lists it")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{path}: has {size} bytes, manifest.json says {entry.bytes}")
    digest = sha256_file(path)
    if digest != entry.sha256:
        raise BundleError(f"{path}: SHA-256 is {digest}, manifest.json says {entry.sha256}")


_MEANING = {
    "extra_forbidden": "is not a known key",
    "missing": "is missing",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "string_type": "is not a string",
    "bool_type": "is not true or false",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "tuple_type": "is not a list",
}


def _sentence(problem: dict[str, Any]) -> str:
    """One finding of pydantic as `key.path: value what`."""
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    prefix = f"{key}: " if key else ""
    kind = problem["type"]
    if kind in ("missing", "extra_forbidden"):
        return f"{prefix}{_MEANING[kind]}"
    if kind == "json_invalid":
        return f"is not JSON: {problem['ctx']['error']}"
    if kind == "value_error":
        return f"{prefix}{problem['ctx']['error']}"
    value = problem["input"]
    shown = json.dumps(value) if isinstance(value, int | float | bool | None) else repr(value)
    message = str(problem["msg"])
    return f"{prefix}{shown[:80]} {_MEANING.get(kind, f'is not accepted: {message}')}"
