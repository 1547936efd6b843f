"""The files of / and /docs as they leave the service; test_try_page.py has a browser."""

import html
import importlib.resources
import re

import httpx
import pytest

from clq_serve.admin_app import create_admin_app
from clq_serve.app import create_app
from clq_serve.loading import LoadedModel
from clq_serve.models import ModelStore
from clq_serve.service import DetectService
from clq_serve.settings import Settings


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False)


def files_of(page: httpx.Response) -> list[str]:
    """The paths of everything that a page loads."""
    loads = re.findall(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", page.text)
    return [page.url.join(path).path for path in loads]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_only_files_of_the_service_and_has_nothing_inline(
    server: str, path: str
) -> None:
    page = get(server + path)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert " style=" not in page.text
    assert not re.search(r"\son\w+=", page.text)
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style", page.text) == []
    paths = files_of(page)
    assert len(paths) >= 3
    for file in paths:
        assert file.startswith("/page/")
        assert get(server + file).status_code == 200, file


def test_scripts_import_only_scripts_that_are_there(server: str) -> None:
    seen, waiting = set(), ["main.js"]
    while waiting:
        name = waiting.pop()
        script = get(f"{server}/page/{name}")
        assert script.headers["content-type"].startswith("text/javascript")
        assert script.headers["x-content-type-options"] == "nosniff"
        seen.add(name)
        waiting += set(re.findall(r'from "\./([^"]+)"', script.text)) - seen
    assert seen >= {"main.js", "ask.js", "stage.js", "suppress.js"}


def test_a_file_is_sent_once_and_then_only_if_it_has_changed(server: str) -> None:
    first = get(f"{server}/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = get(f"{server}/page/main.js", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    changed = get(f"{server}/page/main.js", **{"If-None-Match": '"another"'})
    assert changed.content == first.content


def test_the_reference_names_every_route(tiny_model_loaded: LoadedModel) -> None:
    text = html.unescape(importlib.resources.files("clq_serve").joinpath("docs.html").read_text())
    named = re.findall(r"(?<![\w.])/[\w./-]+", re.sub(r"<[^>]+>", " ", text))
    service = DetectService(ModelStore([tiny_model_loaded]), Settings(threads=1))
    apps = [create_app(service.settings, service.models), create_admin_app(service)]
    paths = {path for app in apps for path in app.openapi()["paths"]}
    service.close()
    assert len(paths) > 15
    for path in paths:
        shown = path.replace("{name}", "NAME").replace("{version}", "N")
        families = [name.removesuffix("...") for name in named if name.endswith("...")]
        assert shown in named or any(shown.startswith(family) for family in families), path


def test_the_problems_are_listed_by_status(server: str) -> None:
    rows = re.findall(r'<tr id="\w+"><td>(\d+)</td>', get(f"{server}/docs").text)
    assert rows == sorted(rows)
    assert len(rows) > 20


@pytest.mark.parametrize("name", ["none.js", "index.html", "..%2fapp.py", "%2e%2e%2fapp.py"])
def test_nothing_else_is_under_page(server: str, name: str) -> None:
    assert get(f"{server}/page/{name}").json()["code"] == "not_found"
