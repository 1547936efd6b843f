"""Admin routes: what models there are, and loading and unloading them."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from clq_serve import problems
from clq_serve.models import ModelStatus, ModelStore
from clq_serve.responses import ModelIndex, ModelLine
from clq_serve.routes_info import service_of

router = APIRouter(prefix="/admin/models")

Version = Annotated[int | None, Query(ge=1, description="absent: see the route")]
_LOAD_PROBLEMS = {
    404: "there is no such folder of a bundle",
    409: "it is being loaded already",
    422: "the bundle is refused; what was loaded before still answers",
    503: "the service is stopping",
}
_UNLOAD_PROBLEMS = {
    404: "it is not loaded",
    409: "it is being loaded, or is the last version of the default model",
}


@router.get("")
def index(request: Request) -> ModelIndex:
    """Every model on disk or loaded, with its state and the reason if it is not ready."""
    return _index(_store(request))


@router.post("/{name}/load", responses=problems.documented(_LOAD_PROBLEMS))
async def load(request: Request, name: str, version: Version = None) -> ModelIndex:
    """Loads a version (absent: the newest on disk) and swaps it in; answers when that is done."""
    await _store(request).load(name, version)
    return _index(_store(request))


@router.post("/{name}/unload", responses=problems.documented(_UNLOAD_PROBLEMS))
def unload(request: Request, name: str, version: Version = None) -> ModelIndex:
    """Unloads a version (absent: all of them); requests that have it already are finished."""
    _store(request).unload(name, version)
    return _index(_store(request))


def _store(request: Request) -> ModelStore:
    return service_of(request).models


def _index(store: ModelStore) -> ModelIndex:
    return ModelIndex(models=tuple(_line(status) for status in store.index()))


def _line(status: ModelStatus) -> ModelLine:
    return ModelLine(
        name=status.key.name,
        version=status.key.version,
        state=status.state.value,
        reason=status.reason,
        digest=status.digest,
        default=status.default,
    )
