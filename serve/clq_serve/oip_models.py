"""The models that the Open Inference Protocol shows: two for each loaded one.

NAME        takes prepared pixels, `images` UINT8 [N, H, W, 3] as the bundle's manifest says
NAME_image  takes image files, `image` BYTES [N]; boxes are in pixels of each upright image

Both answer with detections, not with candidates: the suppression is part of the model here, as it
is in the EfficientNMS exports that users of the protocol know.
"""

from dataclasses import dataclass
from typing import Any

from clq_serve.errors import UnknownModel
from clq_serve.loading import LoadedModel
from clq_serve.models import ModelState, ModelStore
from clq_serve.settings import Settings

IMAGE_SUFFIX = "_image"
OUTPUTS = {  # name -> (datatype, shape of one image); D = the most detections of any image
    "num_dets": ("INT32", [1]),
    "boxes": ("FP32", [-1, 4]),
    "scores": ("FP32", [-1]),
    "labels": ("INT32", [-1]),
    "quality": ("FP32", [-1]),
}
IMAGE_SIZE = {"image_size": ("INT32", [2])}  # NAME_image only
_TYPES_OF_CONFIG = {"BYTES": "TYPE_STRING"}


@dataclass(frozen=True, slots=True)
class ProtocolModel:
    """A loaded model under one of its two names."""

    name: str
    loaded: LoadedModel
    takes_files: bool

    @property
    def version(self) -> str:
        return str(self.loaded.version)

    @property
    def on_tensorrt(self) -> bool:
        """Whether a TensorRT plan answers, and not ONNX Runtime with any of its providers."""
        return self.loaded.provider.startswith("TensorRT ")

    @property
    def platform(self) -> str:
        """Triton's word for what is run."""
        return "tensorrt_plan" if self.on_tensorrt else "onnxruntime_onnx"

    @property
    def input(self) -> tuple[str, str, list[int]]:
        """Name, datatype and shape of the one input, with the side that counts images."""
        return (
            ("image", "BYTES", [-1]) if self.takes_files else ("images", "UINT8", [-1, -1, -1, 3])
        )

    @property
    def outputs(self) -> dict[str, tuple[str, list[int]]]:
        """Name -> datatype and shape of one image."""
        return OUTPUTS | IMAGE_SIZE if self.takes_files else OUTPUTS


def find_model(store: ModelStore, name: str, version: str | None = None) -> ProtocolModel:
    """The model that a URL names; None: its newest version.  Raises UnknownModel."""
    for known in protocol_models(store):
        if known.name == name and version in (None, known.version):
            return known
    names = [f"{known.name}/{known.version}" for known in protocol_models(store)]
    asked = f"{name[:200]!r}" + ("" if version is None else f" version {version[:20]!r}")
    raise UnknownModel(
        f"Request for unknown model: {asked} is not found; loaded: {', '.join(names)}",
        extra={"accepted": names},
    )


def protocol_models(store: ModelStore) -> list[ProtocolModel]:
    """Every loaded model under both names, newer versions before older ones."""
    loaded = store.all()
    names = {model.name for model in loaded}
    found: list[ProtocolModel] = []
    for model in loaded:
        found.append(ProtocolModel(model.name, model, False))
        if model.name + IMAGE_SUFFIX not in names:  # a bundle of that very name goes before
            found.append(ProtocolModel(model.name + IMAGE_SUFFIX, model, True))
    return found


def repository_index(store: ModelStore, ready_only: bool) -> list[dict[str, str]]:
    """Answer of POST /v2/repository/index: every model on disk or loaded, under both names."""
    lines = store.index()
    names = {line.key.name for line in lines}
    shown = [(line, line.key.name) for line in lines]
    shown += [(line, image) for line, name in shown if (image := name + IMAGE_SUFFIX) not in names]
    shown.sort(key=lambda each: (each[1], each[0].key.version))
    return [
        {
            "name": name,
            "version": str(line.key.version),
            "state": line.state.value,
            "reason": line.reason,
        }
        for line, name in shown
        if line.state is ModelState.READY or not ready_only
    ]


def repository_name(store: ModelStore, name: str) -> str:
    """The name on disk of what the protocol calls `name`; `name` itself if there is none."""
    known = {line.key.name for line in store.index()}
    bare = name.removesuffix(IMAGE_SUFFIX)
    return bare if name not in known and bare in known else name


def metadata(store: ModelStore, model: ProtocolModel) -> dict[str, Any]:
    """Answer of GET /v2/models/NAME."""
    versions = sorted(m.loaded.version for m in protocol_models(store) if m.name == model.name)
    name, datatype, shape = model.input
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": model.platform,
        "inputs": [{"name": name, "datatype": datatype, "shape": shape}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, *shape]}
            for name, (datatype, shape) in model.outputs.items()
        ],
    }


def config(model: ProtocolModel, settings: Settings) -> dict[str, Any]:
    """Answer of GET /v2/models/NAME/config: Triton's ModelConfig, as far as it has meaning here."""
    name, datatype, shape = model.input
    # Dimensions are without the side that counts images; `image` has no other, which Triton writes
    # as max_batch_size 0 and all sides.
    batched = not model.takes_files
    on_cpu = model.loaded.provider == "CPUExecutionProvider"
    group = {"name": f"{model.name}_0", "count": len(model.loaded.lanes)}
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": "tensorrt" if model.on_tensorrt else "onnxruntime",
        "version_policy": {"latest": {"num_versions": settings.versions_kept}},
        "max_batch_size": settings.max_images_per_request if batched else 0,
        "input": [_port(name, datatype, shape[1:] if batched else shape)],
        "output": [
            _port(name, datatype, shape if batched else [-1, *shape])
            for name, (datatype, shape) in model.outputs.items()
        ],
        "instance_group": [group | {"kind": "KIND_CPU" if on_cpu else "KIND_GPU"}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(1e3 * settings.batch_delay_ms),
            "priority_levels": 2,
            "default_priority_level": 1,
            "default_queue_policy": {"max_queue_size": settings.queue_images},
        },
        "default_model_filename": "model.onnx",
        "model_warmup": [],
    }


def _port(name: str, datatype: str, dims: list[int]) -> dict[str, Any]:
    kind = _TYPES_OF_CONFIG.get(datatype, f"TYPE_{datatype}")
    return {"name": name, "data_type": kind, "format": "FORMAT_NONE", "dims": dims}
