"""API keys: their file, what they are good for, and how much may be asked with them."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient
from hypothesis import given
from hypothesis import strategies as st
from key_files import entry, write
from service_process import command

from clq_serve import keys as keys_module
from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.errors import SettingsError
from clq_serve.keys import Keys, Scope, new_key, read_keys
from clq_serve.limits import KeyLimits, Limiter
from clq_serve.loading import LoadedModel
from clq_serve.models import ModelStore
from clq_serve.settings import Settings

Ask = Callable[[AsyncClient, AsyncClient], Awaitable[None]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    write(path, entry("cam", "infer"), entry("ops", "admin"), entry("prom", "metrics"))
    return path


def ask_both(model: LoadedModel, file: Path, ask: Ask) -> None:
    """Runs `ask` with clients of the public and of the admin application."""
    settings = Settings(threads=1, keys=file, public_model_control=True)
    app = create_app(settings, ModelStore([model]))

    async def run() -> None:
        async with app.router.lifespan_context(app):
            admin = create_admin_app(app.state.service, app.state.keys)
            async with (
                AsyncClient(transport=ASGITransport(app), base_url="http://x") as public,
                AsyncClient(transport=ASGITransport(admin), base_url="http://x") as private,
            ):
                await ask(public, private)

    asyncio.run(run())


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_new_key_is_as_long_as_its_digest_and_in_no_file() -> None:
    key, text = new_key("cam-1", frozenset({Scope.INFER, Scope.ADMIN}))
    assert re.fullmatch(r"clq_[A-Za-z0-9_-]{43}", key)  # 256 bits
    assert key not in text
    assert 'scopes = ["admin", "infer"]' in text
    assert new_key("cam-1", frozenset({Scope.INFER}))[0] != key


def test_the_command_prints_an_entry_that_the_service_accepts(tmp_path: Path) -> None:
    done = command("keys", "new", "cam-1", "--scope", "infer", "--scope", "metrics")
    assert done.returncode == 0
    file = tmp_path / "keys.toml"
    write(file, done.stdout)
    key = done.stderr.split()[-1]
    found = Keys(file).find(key)
    assert found is not None
    assert found[0] == "cam-1"
    assert found[1].scopes == {Scope.INFER, Scope.METRICS}


@pytest.mark.parametrize(
    ("arguments", "word"), [(("a b",), "'a b' is not a name"), (("a", "--scope", "all"), "'all'")]
)
def test_the_command_refuses_names_and_scopes_in_one_line(
    arguments: tuple[str, ...], word: str
) -> None:
    done = command("keys", "new", *arguments)
    assert done.returncode == 1
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_scopes_decide_what_a_key_opens(tiny_model_loaded: LoadedModel, file: Path) -> None:
    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        unload = "/v2/repository/models/none/unload"
        for client, method, path, cam, ops, prom in (
            (public, "GET", "/v1/labels", 200, 403, 403),
            (public, "POST", unload, 403, 404, 403),
            (public, "GET", "/none", 404, 403, 403),
            (admin, "GET", "/metrics", 403, 200, 200),
            (admin, "GET", "/debug/scheduler", 403, 200, 403),
            (admin, "POST", unload, 403, 404, 403),
        ):
            for key, status in (("cam", cam), ("ops", ops), ("prom", prom), ("no", 401)):
                answer = await client.request(method, path, headers=bearer(key), json={})
                assert answer.status_code == status, (path, key, answer.text)
                again = await client.request(method, path, headers={"X-API-Key": key}, json={})
                assert again.status_code == status
            assert (await client.request(method, path)).status_code == 401

    ask_both(tiny_model_loaded, file, ask)


def test_probes_and_the_page_are_open(tiny_model_loaded: LoadedModel, file: Path) -> None:
    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        for path in ("/healthz", "/readyz"):
            assert (await public.get(path)).status_code == 200
            assert (await admin.get(path)).status_code == 200
        for path in ("/", "/docs", "/page/main.js", "/v2/health/ready", "/v2/health/live"):
            assert (await public.get(path)).status_code == 200, path

    ask_both(tiny_model_loaded, file, ask)


def test_every_other_route_is_closed(tiny_model_loaded: LoadedModel, file: Path) -> None:
    app = create_app(Settings(threads=1, keys=file), ModelStore([tiny_model_loaded]))

    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        for path, methods in app.openapi()["paths"].items():
            for method in methods:
                answer = await public.request(method, path.replace("{", "").replace("}", ""))
                is_open = path in ("/healthz", "/readyz", "/startupz", "/ping") or (
                    path.startswith("/v2/") and path.endswith(("/ready", "/live"))
                )
                assert (answer.status_code == 401) is not is_open, path

    ask_both(tiny_model_loaded, file, ask)


def test_the_answer_says_how_to_bring_a_key(tiny_model_loaded: LoadedModel, file: Path) -> None:
    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        without = await public.get("/v1/labels")
        assert without.json()["code"] == "no_key"
        assert without.headers["www-authenticate"] == 'Bearer realm="clq"'
        wrong = await public.get("/v1/labels", headers=bearer("no"))
        assert wrong.json()["code"] == "unknown_key"
        assert 'error="invalid_token"' in wrong.headers["www-authenticate"]
        scope = await public.get("/v1/labels", headers=bearer("prom"))
        assert (scope.json()["code"], scope.json()["accepted"]) == ("wrong_scope", ["infer"])

    ask_both(tiny_model_loaded, file, ask)


def test_a_changed_file_counts_and_a_broken_one_does_not(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_module, "LOOK_S", 0.0)
    keys = Keys(file)
    assert keys.find("cam") is not None
    assert keys.find("new") is None
    write(file, entry("new", "infer"))
    assert keys.find("new") is not None
    assert keys.find("cam") is None
    for broken in ("[new", "[new]\ndigest = 1\n", entry("new", "everything")):
        caplog.clear()
        file.write_text(broken)
        assert keys.find("new") is not None
        assert keys.find("new") is not None
        complaints = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(complaints) == 1
        assert "the 1 keys from before still count" in complaints[0].getMessage()
    file.unlink()
    assert keys.find("new") is not None
    write(file, entry("cam", "infer"))
    assert keys.find("cam") is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", ["not TOML"]),
        ('[a]\ndigest = "sha256:12"\nscopes = ["infer"]\n', ["a.digest"]),
        (entry("a", "everything"), ["a.scopes"]),
        (entry("a"), ["a.scopes"]),
        (entry("a", "infer", more="burts = 3"), ["a.burts"]),
        (entry("a", "infer", more="burst = 0"), ["a.burst"]),
        (entry("a", "infer") + entry("a", "infer").replace("[a]", "[b]"), ["same digest as a"]),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_member(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    write(tmp_path / "keys.toml", text)
    with pytest.raises(SettingsError) as caught:
        read_keys(tmp_path / "keys.toml")
    for word in ["keys.toml: ", *words]:
        assert word in str(caught.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    done = command("run", "--port", "0", "--set", f"keys={tmp_path / 'none'}")
    assert done.returncode == 1
    assert "none: No such file" in done.stderr


def test_a_file_that_others_may_read_is_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_keys(file)
    assert caplog.text == ""
    file.chmod(0o640)
    read_keys(file)
    assert "chmod 600" in caplog.text


def test_a_key_over_its_rate_is_told_when_to_come_back(
    tiny_model_loaded: LoadedModel, file: Path
) -> None:
    write(file, entry("cam", "infer", more="requests_per_s = 0.01\nburst = 3"))

    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        for left in (2, 1, 0):
            answer = await public.get("/v1/labels", headers=bearer("cam"))
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"key";q=3;w=300'
            assert answer.headers["ratelimit"].startswith(f'"key";r={left};t=')
        answer = await public.get("/v1/labels", headers=bearer("cam"))
        assert (answer.status_code, answer.json()["code"]) == (429, "key_over_rate")
        assert 1 <= int(answer.headers["retry-after"]) <= 100
        assert answer.headers["ratelimit"].startswith('"key";r=0;t=')

    ask_both(tiny_model_loaded, file, ask)


def test_a_key_with_too_many_requests_inside_is_refused_until_one_has_ended(
    tiny_model_loaded: LoadedModel, file: Path
) -> None:
    write(file, entry("cam", "infer", more="concurrent = 1"), entry("other", "infer"))

    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def body():
            inside.set()
            await go_on.wait()
            yield b"no image"

        headers = bearer("cam") | {"Content-Type": "image/png"}
        first = asyncio.create_task(public.post("/v1/detect", content=body(), headers=headers))
        await inside.wait()
        refused = await public.get("/v1/labels", headers=bearer("cam"))
        assert (refused.status_code, refused.json()["code"]) == (429, "key_busy")
        assert (await public.get("/v1/labels", headers=bearer("other"))).status_code == 200
        go_on.set()
        assert (await first).status_code == 415
        assert (await public.get("/v1/labels", headers=bearer("cam"))).status_code == 200

    ask_both(tiny_model_loaded, file, ask)


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 5), max_size=60),
)
def test_the_bucket_grants_what_counting_one_by_one_grants(
    rate: float, burst: int, pauses: list[float]
) -> None:
    now = 0.0
    limiter = Limiter(KeyLimits(rate, burst, None), clock=lambda: now)
    granted: list[float] = []
    for pause in pauses:
        now += pause
        wait_s = limiter.wait_s()
        if wait_s == 0:
            granted.append(now)
        else:
            assert 0 < wait_s <= 1 / rate + 1e-9
    for first in range(len(granted)):  # no window ever has more than it may
        for last in range(first, len(granted)):
            allowed = burst + rate * (granted[last] - granted[first])
            assert last - first + 1 <= allowed + 1e-6


def test_the_admin_listener_takes_nothing_from_pages(
    tiny_model_loaded: LoadedModel, file: Path
) -> None:
    async def ask(public: AsyncClient, admin: AsyncClient) -> None:
        headers = bearer("ops") | {"Origin": "http://x"}
        refused = await admin.post("/v2/repository/models/a/unload", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")

    ask_both(tiny_model_loaded, file, ask)
