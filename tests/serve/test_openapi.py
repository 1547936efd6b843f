"""The document /openapi.json: frozen in docs/openapi.json, and true (test_contract.py)."""

import json
import re
from pathlib import Path

from clq_serve.app import create_app
from clq_serve.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_interface_is_the_one_in_the_tree() -> None:
    now = json.dumps(create_app(Settings()).openapi(), indent=1) + "\n"
    if now != DOCUMENT.read_text():
        raise AssertionError(
            "the HTTP interface is not what docs/openapi.json says. If the change is wanted, write "
            "it anew and look at the difference:\n  python -m clq_serve.openapi > "
            "docs/openapi.json\n  git diff docs/openapi.json"
        )


def test_every_operation_has_its_own_name_and_words() -> None:
    schema = create_app(Settings()).openapi()
    operations = [o for path in schema["paths"].values() for o in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["description"], operation["operationId"]
        for status, answer in operation["responses"].items():
            assert answer["description"], (operation["operationId"], status)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    schema = create_app(Settings()).openapi()

    def references(tree: object) -> list[str]:
        if isinstance(tree, dict):
            own = [tree["$ref"]] if isinstance(tree.get("$ref"), str) else []
            return own + [r for value in tree.values() for r in references(value)]
        if isinstance(tree, list):
            return [r for value in tree for r in references(value)]
        return []

    found = set(references(schema))
    assert "#/components/schemas/Problem" in found
    for reference in found:
        name = reference.removeprefix("#/components/schemas/")
        assert name in schema["components"]["schemas"], reference


ELSEWHERE = {
    *("bad_infer_request", "forbidden"),  # /v2, which docs/oip.md describes
    *("model_busy", "last_version", "model_refused"),  # the admin listener
    *("bad_http", "headers_too_large", "too_many_connections"),  # what is no request to any route
    *("not_found", "method_not_allowed"),  # what is none of the routes
}


def test_every_problem_code_of_the_page_is_in_the_document() -> None:
    page = DOCUMENT.parents[1] / "serve" / "clq_serve" / "docs.html"
    codes = set(re.findall(r'<tr id="(\w+)"><td>\d', page.read_text()))
    assert len(codes) > 20
    text = DOCUMENT.read_text()
    assert {code for code in codes if f"`{code}`" not in text} == ELSEWHERE
