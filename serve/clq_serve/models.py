"""Which models the service has, by name and version, and how they come and go while it runs."""

import asyncio
import logging
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from clq_serve.errors import (
    BundleError,
    ClqServeError,
    LastVersion,
    ModelBusy,
    ModelRefused,
    SettingsError,
    Unavailable,
    UnknownModel,
)
from clq_serve.loading import LoadedModel, load_model
from clq_serve.metrics import Metrics
from clq_serve.repository import ModelKey, find_bundles, newest
from clq_serve.settings import Settings

log = logging.getLogger(__name__)


class ModelState(StrEnum):
    """The states of the Open Inference Protocol's repository index.

    READY        answers requests
    LOADING      is being checked and warmed up, and does not answer yet
    UNLOADING    is no longer given out, but the last images of earlier requests still run
    UNAVAILABLE  is on disk (or was) and not loaded; the reason says why
    """

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of the index.

    reason   why it is not ready, or why the last attempt to load it again failed; "" = all is well
    digest   of the loaded graph; "" where none is loaded
    default  whether requests that name no model get this one
    """

    key: ModelKey
    state: ModelState
    reason: str
    digest: str
    default: bool


class ModelStore:
    """The models that are loaded now.  All methods may be called from any thread.

    Loads and unloads happen one after another, loads in a thread of their own beside what runs.  A
    model that is swapped out lives until nothing refers to it any more: whoever runs a request
    keeps the LoadedModel from `get` until the answer is made, and no longer.
    """

    def __init__(self, models: Sequence[LoadedModel], settings: Settings | None = None) -> None:
        """models    loaded already; the name of the first is the default
        settings  where further versions come from and how they are loaded; None = Settings()
        """
        assert models, "a service has at least one model"
        self._settings = settings or Settings()
        self._lock = threading.Lock()
        self._default = models[0].name
        self._loaded = {ModelKey(model.name, model.version): model for model in models}
        self._busy: set[ModelKey] = set()
        self._reasons: dict[ModelKey, str] = {}
        self._retired: list[tuple[ModelKey, weakref.ref[LoadedModel]]] = []
        self._metrics: Metrics | None = None
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The store with what `settings` name: of each name the newest versions, all proved.

        Raises BundleError if any of them must not be served, or if there is none; SettingsError.
        """
        if settings.watch_models_s > 0 and settings.models is None:
            raise SettingsError("watch_models_s is given without models, the folder to watch")
        found = find_bundles(settings)
        names = sorted({key.name for key in found})
        default = settings.default_model or (names[0] if names else "")
        if default not in names:
            raise BundleError(
                f"{settings.models or settings.bundle}: there is no model {default!r} in it; "
                f"found: {', '.join(names) or 'nothing'}; accepted: folders NAME/VERSION/"
            )
        names.sort(key=lambda name: name != default)
        wanted = [key for name in names for key in newest(found, name, settings.versions_kept)]
        return cls([load_model(settings, found[key]) for key in wanted], settings)

    def report_to(self, metrics: Metrics) -> None:
        """Tells `metrics` which models are loaded, now and from now on."""
        with self._lock:
            self._metrics = metrics
            for model in self._loaded.values():
                metrics.model_loaded(model.name, model.version, model.bundle.digest)

    def close(self) -> None:
        """Waits for a load in progress; no more are accepted."""
        self._loader.shutdown(cancel_futures=True)

    def get(self, name: str | None = None, version: int | None = None) -> LoadedModel:
        """The model `name` (None: the default) in `version` (None: its newest that is loaded).

        Raises UnknownModel.
        """
        wanted = self._default if name is None else name
        with self._lock:
            found = [m for k, m in self._loaded.items() if k.name == wanted]
        found = [model for model in found if version in (None, model.version)]
        if not found:
            raise _unknown(wanted, version, "loaded", [_key(model) for model in self.all()])
        return max(found, key=lambda model: model.version)

    def all(self) -> list[LoadedModel]:
        """Every loaded model: those of the default name first, and newer versions before older."""
        with self._lock:
            models = list(self._loaded.values())
        return sorted(models, key=lambda m: (m.name != self._default, m.name, -m.version))

    def index(self) -> list[ModelStatus]:
        """Every model that is on disk, loaded, or was asked for; by name and version."""
        try:
            on_disk = set(find_bundles(self._settings))
        except BundleError as err:
            log.warning("%s", err)
            on_disk = set()
        with self._lock:
            self._retired = [(key, ref) for key, ref in self._retired if ref() is not None]
            leaving = {key for key, _ in self._retired}
            known = on_disk | set(self._loaded) | self._busy | set(self._reasons) | leaving
            return [self._status(key, leaving) for key in sorted(known)]

    async def load(self, name: str, version: int | None = None) -> LoadedModel:
        """The model, loaded anew from its folder; None: the newest version there.

        What is loaded stays in use until the new one has proved itself, and for good if it fails.
        Of the other loaded versions of the name, the oldest beyond `versions_kept` are unloaded.

        Raises UnknownModel if there is no such folder, ModelBusy while it is being loaded already,
        ModelRefused if it must not be served.
        """
        try:
            found = await asyncio.to_thread(find_bundles, self._settings)
        except BundleError as err:
            log.warning("%s", err)
            raise ModelRefused("the folder of models cannot be read; the log says why") from err
        versions = newest(found, name, len(found))
        wanted = [key for key in versions if version in (None, key.version)]
        if not wanted:
            raise _unknown(name, version, "found", sorted(found))
        key = wanted[-1]
        with self._lock:
            if key in self._busy:
                raise ModelBusy(f"{key} is being loaded already; wait until that has ended")
            try:
                future = self._loader.submit(self._load, key, found[key])
            except RuntimeError:  # the executor is shut down
                raise Unavailable("the service is stopping", code="draining") from None
            self._busy.add(key)
        # A client that leaves does not end the load: it is finished and swapped in by its thread.
        return await asyncio.shield(asyncio.wrap_future(future))

    def unload(self, name: str, version: int | None = None) -> list[ModelKey]:
        """What is no longer given out: the version, or with None all versions, of `name`.

        Raises UnknownModel if it is not loaded, ModelBusy while it is being loaded, LastVersion if
        the default name would have no version left.
        """
        with self._lock:
            loaded = sorted(self._loaded)
            versions = [key for key in loaded if key.name == name]
            leaving = [key for key in versions if version in (None, key.version)]
            if not leaving:
                raise _unknown(name, version, "loaded", loaded)
            if any(key in self._busy for key in leaving):
                raise ModelBusy(f"{leaving[0]} is being loaded; wait until that has ended")
            if name == self._default and len(leaving) == len(versions):
                raise LastVersion(
                    f"{leaving[-1]} is the last loaded version of the default model; requests that "
                    "name no model need it. Load another version first"
                )
            retired = [self._retire(key, "unloaded on request") for key in leaving]
        del retired  # not under the lock: closing an engine takes time
        return leaving

    def _load(self, key: ModelKey, path: Path) -> LoadedModel:
        """Runs in the loader's thread."""
        try:
            model = load_model(self._settings, path, self._shapes(key.name))
        except Exception as err:
            reason = f"{err}" if isinstance(err, ClqServeError) else f"{type(err).__name__}: {err}"
            reason = reason.replace(str(path), str(key))  # clients see it; paths are not theirs
            bug = not isinstance(err, ClqServeError)
            log.warning("%s is not loaded: %s", key, reason, exc_info=bug)
            with self._lock:
                self._busy.discard(key)
                self._reasons[key] = reason
                if self._metrics is not None:
                    self._metrics.model_load_ended(key.name, refused=True)
            raise ModelRefused(f"{key} is not loaded: {reason}") from err
        # Closed when this returns: that takes time, so not under the lock.
        retired: list[LoadedModel] = []
        with self._lock:
            self._busy.discard(key)
            if key in self._loaded:
                retired.append(self._retire(key, ""))
            self._reasons.pop(key, None)
            self._loaded[key] = model
            if self._metrics is not None:
                self._metrics.model_loaded(key.name, key.version, model.bundle.digest)
                self._metrics.model_load_ended(key.name, refused=False)
            others = sorted(k for k in self._loaded if k.name == key.name and k != key)
            for old in others[: max(0, len(others) + 1 - self._settings.versions_kept)]:
                reason = f"unloaded when {key} was loaded (versions_kept)"
                retired.append(self._retire(old, reason))
        log.info("%s loaded: %s", key, model.bundle.digest)
        return model

    def _shapes(self, name: str) -> list[tuple[int, int]]:
        """What images the loaded version of the name has seen."""
        with self._lock:
            loaded = [model for key, model in self._loaded.items() if key.name == name]
        return loaded[-1].seen_shapes() if loaded else []

    def _retire(self, key: ModelKey, reason: str) -> LoadedModel:
        """The model, no longer given out; closed when nobody holds it any more.  Under the lock."""
        model = self._loaded.pop(key)
        self._retired.append((key, weakref.ref(model)))
        self._reasons[key] = reason
        if self._metrics is not None:
            self._metrics.model_unloaded(key.name, key.version)
        return model

    def _status(self, key: ModelKey, leaving: set[ModelKey]) -> ModelStatus:
        model = self._loaded.get(key)
        reason = self._reasons.get(key, "")
        if model is not None:
            state = ModelState.READY
            reason = "is being loaded again" if key in self._busy else reason
        elif key in self._busy:
            state = ModelState.LOADING
            reason = "is being checked and warmed up"
        else:
            state = ModelState.UNLOADING if key in leaving else ModelState.UNAVAILABLE
            reason = reason or "was not asked for"
        digest = "" if model is None else model.bundle.digest
        newest_version = max((k for k in self._loaded if k.name == self._default), default=None)
        return ModelStatus(key, state, reason, digest, key == newest_version)


def _key(model: LoadedModel) -> ModelKey:
    return ModelKey(model.name, model.version)


def _unknown(name: str, version: int | None, what: str, there: Sequence[ModelKey]) -> UnknownModel:
    asked = name if version is None else f"{name}/{version}"
    accepted = [str(key) for key in there]
    return UnknownModel(
        f"there is no model {asked!r}; {what}: {', '.join(accepted) or 'none'}",
        extra={"accepted": accepted},
    )
