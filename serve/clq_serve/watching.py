"""Follows the folder of models: what is added, changed or removed there is loaded or unloaded."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from clq_serve.bundle import MANIFEST_FILE, read_manifest
from clq_serve.errors import BundleError, ModelBusy, ServeError
from clq_serve.models import ModelStore
from clq_serve.repository import ModelKey, Signature, find_bundles, folder_signature, newest
from clq_serve.settings import Settings

log = logging.getLogger(__name__)


@asynccontextmanager
async def watching(store: ModelStore, settings: Settings) -> AsyncIterator[None]:
    """While inside, looks at the folder every `watch_models_s` seconds; not at all if that is 0."""
    if settings.watch_models_s == 0:
        yield
        return
    task = asyncio.create_task(_look_again_and_again(FolderWatch(store, settings), settings))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _look_again_and_again(watch: "FolderWatch", settings: Settings) -> None:
    while True:
        await asyncio.sleep(settings.watch_models_s)
        try:
            await watch.look()
        except Exception:  # whatever it is, the service goes on with what is loaded
            log.exception("the folder of models could not be followed this time")


class FolderWatch:
    """What was seen in the folder so far.

    A bundle is looked at once two looks in a row find the same files, so that one that is still
    being copied is left alone.  One that was refused is tried again when its files change.
    """

    def __init__(self, store: ModelStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._seen: dict[ModelKey, Signature] = {}
        self._done: dict[ModelKey, Signature] = {}

    async def look(self) -> None:
        """Loads what is new or changed, unloads what is gone."""
        found, seen = await asyncio.to_thread(self._read)
        before, self._seen = self._seen, seen
        for key in sorted(before.keys() - seen.keys()):
            self._done.pop(key, None)
            self._unload(key)
        for key in sorted(seen):
            if before.get(key) == seen[key] != self._done.get(key):
                await self._follow(key, found)

    def _read(self) -> tuple[dict[ModelKey, Path], dict[ModelKey, Signature]]:
        found = find_bundles(self._settings)
        return found, {key: folder_signature(path) for key, path in found.items()}

    async def _follow(self, key: ModelKey, found: dict[ModelKey, Path]) -> None:
        signature = self._seen[key]
        wanted = await asyncio.to_thread(self._is_wanted, key, found)
        try:
            if wanted:
                await self._store.load(*key)
        except ModelBusy:
            return  # somebody loads it just now; look again
        except ServeError as err:
            log.warning("%s: %s", key, err.detail)
        self._done[key] = signature

    def _is_wanted(self, key: ModelKey, found: dict[ModelKey, Path]) -> bool:
        """Whether it is loaded in another form, or is not loaded but one of the newest."""
        loaded = {(model.name, model.version): model for model in self._store.all()}.get(key)
        if loaded is None:
            return key in newest(found, key.name, self._settings.versions_kept)
        try:
            return read_manifest(found[key] / MANIFEST_FILE) != loaded.bundle.manifest
        except BundleError:
            return True  # the load says what is wrong

    def _unload(self, key: ModelKey) -> None:
        if key not in {(model.name, model.version) for model in self._store.all()}:
            return
        try:
            self._store.unload(*key)
            log.info("%s unloaded: its folder is gone", key)
        except ServeError as err:
            log.warning("%s is gone from the folder but stays loaded: %s", key, err.detail)
