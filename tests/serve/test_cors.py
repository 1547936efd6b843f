"""Cross-origin requests: off by default, and only for the origins of the setting."""

from pathlib import Path

import httpx
import pytest

from clq_serve.cors import parse_origins
from clq_serve.settings import Settings

APP = "https://app.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST"}


def preflight(
    url: str, origin: str, headers: str = "authorization, content-type"
) -> httpx.Response:
    asked = PREFLIGHT | {"Origin": origin, "Access-Control-Request-Headers": headers}
    return httpx.options(f"{url}/v1/detect", headers=asked, trust_env=False)


def allowed(answer: httpx.Response) -> str | None:
    return answer.headers.get("access-control-allow-origin")


def test_by_default_no_other_origin_is_allowed(server: str) -> None:
    asked = preflight(server, APP)
    assert (asked.status_code, allowed(asked)) == (405, None)
    answer = httpx.get(f"{server}/v1/models", headers={"Origin": APP}, trust_env=False)
    assert (answer.status_code, allowed(answer)) == (200, None)


def test_only_the_origins_of_the_setting_are_allowed(start_server) -> None:
    url = start_server(cors_origins=f"{APP}, http://localhost:5173")
    for origin in (APP, "http://localhost:5173"):
        asked = preflight(url, origin)
        assert (asked.status_code, allowed(asked)) == (200, origin)
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in asked.headers
    for origin in ("https://app.example.evil", "http://app.example", "null"):
        assert allowed(preflight(url, origin)) is None
    assert preflight(url, APP, "x-other").status_code == 400


def test_problems_can_be_read_by_an_allowed_page_too(start_server) -> None:
    url = start_server(cors_origins=APP)
    answer = httpx.post(f"{url}/v1/detect", headers={"Origin": APP}, trust_env=False)
    assert (answer.status_code, allowed(answer)) == (415, APP)
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-request-id"]


def test_the_preflight_needs_no_key_but_the_request_does(start_server, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.touch(0o600)
    keys.write_text('[someone]\ndigest = "sha256:' + "0" * 64 + '"\nscopes = ["infer"]\n')
    url = start_server(cors_origins=APP, keys=keys)
    assert preflight(url, APP).status_code == 200
    answer = httpx.get(f"{url}/v1/models", headers={"Origin": APP}, trust_env=False)
    assert (answer.status_code, allowed(answer)) == (401, APP)


def test_all_origins_are_allowed_by_a_star(start_server) -> None:
    assert allowed(preflight(start_server(cors_origins="*"), APP)) == "*"


@pytest.mark.parametrize(
    "text", ["app.example", "https://app.example/", "https://App.example", f"{APP},", "ftp://a"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin; accepted"):
        Settings(cors_origins=text)


def test_no_origins_are_none() -> None:
    assert parse_origins(" ") == ()
