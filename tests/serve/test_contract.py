"""schemathesis asks the real server what docs/openapi.json allows, and believes no answer.

Checked of each answer: status, content type, headers and body are as documented, and never a 5xx.
"""

import base64
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pictures import cells
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

PATIENCE_S = 60
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"

operations = [found.ok() for found in schemathesis.openapi.from_path(DOCUMENT).get_all_operations()]


def put_images_into(case: schemathesis.Case) -> None:
    """Real images instead of made-up bytes, so that there are answers besides refusals."""
    b64 = {"b64": base64.b64encode(cells()).decode()}
    if not isinstance(case.body, dict):
        case.body = cells() if case.media_type else case.body
    elif case.media_type == "application/json":
        for name, value in (("image", b64), ("images", [b64, b64])):
            case.body |= {name: value} if name in case.body else {}
    else:
        for name in {"image", "data"} & set(case.body):
            case.body[name] = [cells()] * 2 if isinstance(case.body[name], list) else cells()
    if case.path_parameters:
        case.path_parameters |= {"name": "tiny"}
        case.path_parameters |= {"version": 1} if "version" in case.path_parameters else {}


def give_time_to(case: schemathesis.Case) -> None:
    """No deadline that is over before the work begins: its 504 would be right."""
    for name in list(case.headers or {}):
        if name.lower() == "x-request-timeout-ms":
            case.headers[name] = "30000"


def ask(server: str, operation: APIOperation, examples: int) -> set[int]:
    """Sends seeded requests to one operation; the statuses of the answers."""
    seen: set[int] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), real=st.booleans())
    def answers_as_documented(case: schemathesis.Case, real: bool) -> None:
        if real:
            put_images_into(case)
        give_time_to(case)
        answer = case.call_and_validate(
            base_url=server,
            timeout=PATIENCE_S,
            # No schema can say which bytes are an image, nor that an option in the query and in the
            # body is refused; and real images are put in after the case was judged.
            excluded_checks=[positive_data_acceptance, negative_data_rejection],
        )
        seen.add(answer.status_code)

    answers_as_documented()
    return seen


@pytest.mark.parametrize("operation", operations, ids=lambda o: o.label)
def test_answers_are_what_the_document_says(server: str, operation: APIOperation) -> None:
    ask(server, operation, 8)


@pytest.mark.slow
@pytest.mark.parametrize("operation", operations, ids=lambda o: o.label)
def test_many_answers_are_what_the_document_says(server: str, operation: APIOperation) -> None:
    assert 200 in ask(server, operation, 150)
