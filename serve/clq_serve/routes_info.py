"""What the service tells about itself: models, labels."""

import re

from fastapi import APIRouter, Request

from clq_serve import openapi, problems
from clq_serve.errors import UnknownModel
from clq_serve.loading import LoadedModel
from clq_serve.responses import Label, LabelsAnswer, ModelInfo, ModelsAnswer
from clq_serve.service import DetectService

router = APIRouter()


def service_of(request: Request) -> DetectService:
    """The service that the application of this request runs."""
    service = request.app.state.service
    assert isinstance(service, DetectService)
    return service


def model_of(request: Request) -> LoadedModel:
    """The model that the path names; the default one where it names none.  Raises UnknownModel."""
    name, version = request.path_params.get("name"), request.path_params.get("version")
    if version is None:
        return service_of(request).models.get(name)
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise UnknownModel(f"{version[:80]!r} is not a version; accepted: a whole number from 1")
    return service_of(request).models.get(name, int(version))


@router.get("/v1/models")
async def models(request: Request) -> ModelsAnswer:
    """The loaded models; the first is the one that answers when a request names none."""
    return ModelsAnswer(models=tuple(_info(model) for model in service_of(request).models.all()))


async def labels(request: Request) -> LabelsAnswer:
    """The classes of the model; `class_id` of a detection is the place in this list."""
    classes = model_of(request).bundle.manifest.classes
    return LabelsAnswer(
        labels=tuple(
            Label(class_id=index, label=entry.name, category_id=entry.category_id)
            for index, entry in enumerate(classes)
        )
    )


for path in openapi.MODEL_PREFIXES:
    router.add_api_route(
        f"{path}/labels",
        labels,
        methods=["GET"],
        responses=problems.documented(openapi.MODEL_PROBLEMS if "{" in path else {}),
        openapi_extra={"parameters": openapi.path_parameters(path)},
    )


def _info(model: LoadedModel) -> ModelInfo:
    manifest = model.bundle.manifest
    return ModelInfo(
        name=manifest.name,
        version=manifest.version,
        digest=model.bundle.digest,
        classes=tuple(manifest.class_names),
        thresholds=manifest.thresholds,
        alpha=manifest.alpha,
        trained_on=manifest.trained_on,
        metrics=manifest.metrics,
        licence=manifest.licence,
        provider=model.provider,
        placement=model.placement,
    )
