"""What the service tells about itself: models, labels."""

from fastapi import APIRouter, Request

from clq_serve.loading import LoadedModel
from clq_serve.responses import Label, LabelsAnswer, ModelInfo, ModelsAnswer
from clq_serve.service import DetectService

router = APIRouter()


def service_of(request: Request) -> DetectService:
    """The service that the application of this request runs."""
    service = request.app.state.service
    assert isinstance(service, DetectService)
    return service


@router.get("/v1/models")
async def models(request: Request) -> ModelsAnswer:
    """The loaded models; the first is the one that answers when a request names none."""
    return ModelsAnswer(models=tuple(_info(model) for model in service_of(request).models.all()))


@router.get("/v1/labels")
async def labels(request: Request) -> LabelsAnswer:
    """The classes of the default model; `class_id` of a detection is the place in this list."""
    classes = service_of(request).models.get().bundle.manifest.classes
    return LabelsAnswer(
        labels=tuple(
            Label(class_id=index, label=entry.name, category_id=entry.category_id)
            for index, entry in enumerate(classes)
        )
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
    )
