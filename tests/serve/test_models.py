"""Models come and go while the service runs; what answers is always a model that proved itself."""

import asyncio
import gc
import io
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from clq_serve import models as models_module
from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.errors import (
    BundleError,
    LastVersion,
    ModelBusy,
    ModelRefused,
    SettingsError,
    UnknownModel,
)
from clq_serve.loading import LoadedModel, load_model
from clq_serve.metrics import Metrics
from clq_serve.models import ModelState, ModelStore
from clq_serve.repository import ModelKey
from clq_serve.settings import Settings
from clq_serve.watching import FolderWatch

StartServer = Callable[..., str]


def store_of(root: Path, **settings: object) -> ModelStore:
    return ModelStore.open(Settings.model_validate({"models": root, "threads": 1} | settings))


def states(store: ModelStore) -> dict[str, str]:
    return {str(status.key): status.state.value for status in store.index()}


def reason(store: ModelStore, key: str) -> str:
    return next(status.reason for status in store.index() if str(status.key) == key)


class HeldLoads:
    """load_model that waits for `go` in the loader's thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        monkeypatch.setattr(models_module, "load_model", self._load)

    def _load(self, settings: Settings, path: Path, shapes: list[tuple[int, int]]) -> LoadedModel:
        self.started.set()
        assert self.go.wait(60)
        return load_model(settings, path, shapes)


def test_a_folder_of_models_loads_the_newest_version_of_each(repository) -> None:
    for name, version in (("tiny", 1), ("tiny", 2), ("tiny", 10), ("another", 3)):
        repository(name, version)
    store = store_of(repository.root, default_model="tiny")
    assert [(m.name, m.version) for m in store.all()] == [("tiny", 10), ("another", 3)]
    assert (store.get().name, store.get().version) == ("tiny", 10)
    assert store.get("another").version == 3
    assert states(store) == {
        "another/3": "READY",
        "tiny/1": "UNAVAILABLE",
        "tiny/2": "UNAVAILABLE",
        "tiny/10": "READY",
    }
    assert [str(s.key) for s in store.index() if s.default] == ["tiny/10"]


def test_several_versions_of_one_name_answer_at_once(repository) -> None:
    for version in (1, 2, 3):
        repository("tiny", version, f"v{version}-")
    store = store_of(repository.root, versions_kept=2)
    assert [m.version for m in store.all()] == [3, 2]
    assert store.get("tiny", 2).bundle.manifest.class_names[0] == "v2-red"
    with pytest.raises(UnknownModel, match="no model 'tiny/1'; loaded: tiny/3, tiny/2"):
        store.get("tiny", 1)


def test_the_service_tells_where_a_model_runs(start_server: StartServer) -> None:
    (model,) = httpx.get(f"{start_server(threads=2)}/v1/models").json()["models"]
    assert model["provider"] == "CPUExecutionProvider"
    assert model["placement"] == "cpu: 2 lanes of 1 thread, 1 of 2 for a lone image"


def test_without_a_default_model_it_is_the_first_by_name(repository) -> None:
    repository("tiny", 1)
    repository("another", 1)
    assert store_of(repository.root).get().name == "another"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"default_model": "nothing"}, BundleError, "no model 'nothing' in it; found: tiny"),
        ({"models": Path("/nonexistent")}, BundleError, "models is a folder of NAME/VERSION/"),
        ({"bundle": Path("tiny/1")}, SettingsError, "both given; accepted: one of them"),
    ],
)
def test_a_repository_that_cannot_be_served_is_refused_at_start(
    settings: dict[str, object], error: type[Exception], message: str, repository
) -> None:
    repository("tiny", 1)
    with pytest.raises(error, match=message):
        store_of(repository.root, **settings)


def test_an_empty_folder_of_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="found: nothing; accepted: folders NAME/VERSION/"):
        store_of(tmp_path)


def test_a_new_version_is_swapped_in_and_the_old_one_closed_after_its_last_job(repository) -> None:
    repository("tiny", 1, "v1-")
    store = store_of(repository.root)
    job = store.get()  # a request that is still running
    repository("tiny", 2, "v2-")
    assert asyncio.run(store.load("tiny")).version == 2
    assert store.get().version == 2
    assert states(store) == {"tiny/1": "UNLOADING", "tiny/2": "READY"}
    assert job.bundle.manifest.class_names[0] == "v1-red"
    del job
    gc.collect()
    assert states(store) == {"tiny/1": "UNAVAILABLE", "tiny/2": "READY"}
    assert reason(store, "tiny/1") == "unloaded when tiny/2 was loaded (versions_kept)"


def test_the_metrics_follow_what_is_loaded(repository) -> None:
    repository("tiny", 1, "a")
    store = store_of(repository.root)
    metrics = Metrics()
    store.report_to(metrics)
    old = store.get().bundle.digest
    repository("tiny", 2, "b")
    asyncio.run(store.load("tiny"))
    shown = [line for line in metrics.text().decode().splitlines() if "clq_model_info{" in line]
    assert len(shown) == 1
    assert 'version="2"' in shown[0]
    repository.spoil(repository("tiny", 3))
    with pytest.raises(ModelRefused):
        asyncio.run(store.load("tiny"))
    text = metrics.text().decode()
    for result in ("loaded", "refused"):
        assert f'clq_model_loads_total{{name="tiny",result="{result}"}} 1.0' in text
    assert old not in shown[0]


def test_an_older_version_can_be_loaded_back(repository) -> None:
    repository("tiny", 1)
    repository("tiny", 2)
    store = store_of(repository.root)
    asyncio.run(store.load("tiny", 1))
    assert [m.version for m in store.all()] == [1]


def test_the_same_version_with_changed_files_is_a_reload(repository) -> None:
    repository("tiny", 1, "old-")
    store = store_of(repository.root)
    before = store.get().bundle.digest
    repository("tiny", 1, "new-")
    asyncio.run(store.load("tiny"))
    assert store.get().bundle.manifest.class_names[0] == "new-red"
    assert store.get().bundle.digest != before
    assert states(store) == {"tiny/1": "READY"}


def test_the_last_good_version_stays_when_the_new_one_fails(repository) -> None:
    repository("tiny", 1)
    store = store_of(repository.root)
    repository.spoil(repository("tiny", 2))
    with pytest.raises(ModelRefused, match="computes other results"):
        asyncio.run(store.load("tiny"))
    assert store.get().version == 1
    assert states(store) == {"tiny/1": "READY", "tiny/2": "UNAVAILABLE"}
    assert "computes other results" in reason(store, "tiny/2")
    assert str(repository.root) not in reason(store, "tiny/2")


def test_a_failed_reload_keeps_the_version_and_says_why(repository) -> None:
    repository("tiny", 1, "good-")
    store = store_of(repository.root)
    repository.spoil(repository("tiny", 1, "bad-"))
    with pytest.raises(ModelRefused):
        asyncio.run(store.load("tiny", 1))
    assert store.get().bundle.manifest.class_names[0] == "good-red"
    assert states(store) == {"tiny/1": "READY"}
    assert "computes other results" in reason(store, "tiny/1")
    repository("tiny", 1, "good-")
    asyncio.run(store.load("tiny", 1))
    assert reason(store, "tiny/1") == ""


def test_a_load_in_progress_shows_and_refuses_a_second(
    repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository("tiny", 1)
    store = store_of(repository.root)
    repository("tiny", 2)
    held = HeldLoads(monkeypatch)

    async def both() -> None:
        first = asyncio.create_task(store.load("tiny"))
        await asyncio.to_thread(held.started.wait, 60)
        assert states(store) == {"tiny/1": "READY", "tiny/2": "LOADING"}
        with pytest.raises(ModelBusy, match="tiny/2 is being loaded already"):
            await store.load("tiny", 2)
        held.go.set()
        await first

    asyncio.run(both())
    assert store.get().version == 2


def test_a_client_that_leaves_does_not_stop_its_load(
    repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository("tiny", 1)
    store = store_of(repository.root)
    repository("tiny", 2)
    held = HeldLoads(monkeypatch)

    async def leave() -> None:
        load = asyncio.create_task(store.load("tiny"))
        await asyncio.to_thread(held.started.wait, 60)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        held.go.set()

    asyncio.run(leave())
    store.close()  # waits for the thread
    assert store.get().version == 2


def test_unloading_takes_a_model_away_and_loading_brings_it_back(repository) -> None:
    repository("tiny", 1)
    repository("another", 1)
    store = store_of(repository.root, default_model="tiny")
    assert store.unload("another") == [ModelKey("another", 1)]
    assert states(store)["another/1"] == ModelState.UNAVAILABLE
    with pytest.raises(UnknownModel):
        store.get("another")
    with pytest.raises(UnknownModel, match="no model 'another/1'; loaded: tiny/1"):
        store.unload("another", 1)
    asyncio.run(store.load("another"))
    assert store.get("another").version == 1


def test_the_last_version_of_the_default_model_is_not_unloaded(repository) -> None:
    repository("tiny", 1)
    repository("tiny", 2)
    store = store_of(repository.root, versions_kept=2)
    with pytest.raises(LastVersion, match="tiny/2 is the last loaded version"):
        store.unload("tiny")
    store.unload("tiny", 2)
    with pytest.raises(LastVersion):
        store.unload("tiny", 1)
    assert store.get().version == 1


@pytest.mark.parametrize("name", ["nothing", "..", "../tiny", "/etc", ""])
def test_only_what_lies_in_the_folder_is_loaded(name: str, repository) -> None:
    repository("tiny", 1)
    with pytest.raises(UnknownModel, match="found: tiny/1"):
        asyncio.run(store_of(repository.root).load(name))


def test_folders_that_are_no_bundles_are_ignored(repository) -> None:
    repository("tiny", 1)
    for other in ("tiny/latest", ".cache/1", "tiny/.2", "Upper/1"):
        (repository.root / other).mkdir(parents=True)
    assert states(store_of(repository.root)) == {"tiny/1": "READY"}


def test_the_folder_is_followed(repository) -> None:
    repository("tiny", 1, "first-")
    settings = Settings(models=repository.root, threads=1)
    store = ModelStore.open(settings)
    watch = FolderWatch(store, settings)

    def look(times: int) -> LoadedModel:
        async def several() -> None:
            for _ in range(times):
                await watch.look()

        asyncio.run(several())
        return store.get()

    first = store.get()
    assert look(3) is first  # nothing changed, so nothing is loaded again
    repository("tiny", 2)
    assert look(1) is first  # perhaps it is still being copied
    second = look(1)
    assert second.version == 2
    repository("tiny", 1, "older-")
    assert look(3) is second  # not one of the newest, and not loaded
    repository("tiny", 2, "again-")
    assert look(2).bundle.manifest.class_names[0] == "again-red"
    bad = repository("tiny", 3)
    repository.spoil(bad)
    kept = look(3)
    assert kept.version == 2
    assert "computes other results" in reason(store, "tiny/3")
    repository("another", 1)
    look(2)
    assert store.get("another").version == 1
    shutil.rmtree(repository.root / "another")
    look(1)
    with pytest.raises(UnknownModel):
        store.get("another")
    shutil.rmtree(repository.root / "tiny")
    assert look(2) is kept  # the last of the default model stays
    repository("tiny", 3)
    assert look(2).version == 3


def test_a_running_service_follows_its_folder(repository, start_server: StartServer) -> None:
    repository("tiny", 1)
    url = start_server(bundle=None, models=repository.root, watch_models_s=0.02)
    repository("tiny", 2)
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/v1/models").json()["models"][0]["version"] != 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_watching_without_a_folder_is_refused() -> None:
    with pytest.raises(SettingsError, match="watch_models_s is given without models"):
        ModelStore.open(Settings(watch_models_s=1))


def test_the_admin_routes_show_load_and_unload(repository) -> None:
    repository("tiny", 1)
    repository("another", 1)
    settings = Settings(models=repository.root, threads=1, default_model="tiny")

    async def talk() -> None:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            admin = httpx.ASGITransport(app=create_admin_app(app.state.service))
            client = httpx.AsyncClient(transport=admin, base_url="http://test")
            lines = (await client.get("/admin/models")).json()["models"]
            assert [(m["name"], m["state"], m["default"]) for m in lines] == [
                ("another", "READY", False),
                ("tiny", "READY", True),
            ]
            repository.spoil(repository("tiny", 2))
            refused = await client.post("/admin/models/tiny/load")
            assert (refused.status_code, refused.json()["code"]) == (422, "model_refused")
            assert str(repository.root) not in refused.text
            repository("tiny", 2)
            answer = await client.post("/admin/models/tiny/load", params={"version": 2})
            assert answer.status_code == 200
            ready = {(m["name"], m["version"]) for m in answer.json()["models"] if m["digest"]}
            assert ready == {("another", 1), ("tiny", 2)}
            assert (await client.post("/admin/models/another/unload")).status_code == 200
            again = await client.post("/admin/models/another/unload")
            assert (again.status_code, again.json()["code"]) == (404, "unknown_model")
            last = await client.post("/admin/models/tiny/unload")
            assert (last.status_code, last.json()["code"]) == (409, "last_version")

    asyncio.run(talk())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_the_default_answers_and_the_index_is_true(seed: int, repository) -> None:
    """Random adds, bad bundles, loads and unloads against a plain account of what is loaded."""
    rng = np.random.default_rng(seed)
    kept = int(rng.integers(1, 4))
    repository("tiny", 1, "start-")
    store = store_of(repository.root, default_model="tiny", versions_kept=kept)
    on_disk = {("tiny", 1): ("start-", True)}  # mark, and whether it is good
    loaded = {("tiny", 1): "start-"}
    for step in range(25):
        key = (str(rng.choice(["tiny", "other"])), int(rng.integers(1, 5)))
        action = rng.choice(["add", "spoil", "load", "unload"], p=[0.3, 0.1, 0.4, 0.2])
        if action in ("add", "spoil"):
            folder = repository(*key, f"{step}-")
            if action == "spoil":
                repository.spoil(folder)
            on_disk[key] = (f"{step}-", action == "add")
        elif action == "load" and key not in on_disk:
            with pytest.raises(UnknownModel):
                asyncio.run(store.load(*key))
        elif action == "load" and not on_disk[key][1]:
            with pytest.raises(ModelRefused):
                asyncio.run(store.load(*key))
        elif action == "load":
            asyncio.run(store.load(*key))
            loaded[key] = on_disk[key][0]
            others = sorted(k for k in loaded if k[0] == key[0] and k != key)
            for old in others[: max(0, len(others) + 1 - kept)]:
                del loaded[old]
        elif key not in loaded:
            with pytest.raises(UnknownModel):
                store.unload(*key)
        elif key[0] == "tiny" and sum(name == "tiny" for name, _ in loaded) == 1:
            with pytest.raises(LastVersion):
                store.unload(*key)
        else:
            store.unload(*key)
            del loaded[key]
        marks = {(m.name, m.version): m.bundle.manifest.class_names[0][:-3] for m in store.all()}
        assert marks == loaded
        index = {tuple(s.key): s for s in store.index()}
        assert set(index) >= set(on_disk)
        assert {k for k, s in index.items() if s.state is ModelState.READY} == set(loaded)
        assert store.get().version == max(v for name, v in loaded if name == "tiny")
        assert [k for k, s in index.items() if s.default] == [("tiny", store.get().version)]


def test_no_answer_of_a_replaced_bundle_is_kept_even_if_its_graph_is_the_same(
    repository, start_server: StartServer
) -> None:
    folder = repository("tiny", 1, "old-")
    settings = {"watch_models_s": 0.02, "response_cache_bytes": 2**20}
    url = start_server(bundle=None, models=repository.root, **settings)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32, 0] = 255
    image = png(pixels)

    def ask(etag: str = "") -> httpx.Response:
        headers = {"Content-Type": "image/png", "If-None-Match": etag}
        return httpx.post(f"{url}/v1/detect", content=image, headers=headers)

    first = ask()
    assert ask(first.headers["ETag"]).status_code == 304
    assert first.json()["detections"][0]["label"] == "old-red"
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("old-", "new-"))
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/v1/labels").json()["labels"][0]["label"] != "new-red":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    again = ask(first.headers["ETag"])
    assert again.status_code == 200
    assert again.json()["detections"][0]["label"] == "new-red"
    assert again.json()["model"]["digest"] == first.json()["model"]["digest"]


def png(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_removed_folder_leaves_the_loaded_model_alone(repository) -> None:
    folder = repository("tiny", 1)
    store = store_of(repository.root)
    shutil.rmtree(folder)
    assert states(store) == {"tiny/1": "READY"}
    with pytest.raises(UnknownModel):
        asyncio.run(store.load("tiny"))
