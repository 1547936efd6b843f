"""What is taken for an answer of the service, and what is not."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clq_client import ClqError, DetectResult, UnexpectedAnswer

EACH_INPUT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def members(value, path=()):
    """The paths of all members and items below `value`."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from members(item, (*path, key))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def shown(path):
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_no_json_does_anything_but_parse_or_be_refused(value):
    with pytest.raises(UnexpectedAnswer):
        DetectResult.from_json(value)


@EACH_INPUT
@given(data=st.data())
def test_a_member_that_is_replaced_is_refused_or_comes_back_as_it_was(answer, data):
    value = copy.deepcopy(answer)
    put(value, data.draw(st.sampled_from(list(members(value)))), data.draw(JSON))
    try:
        result = DetectResult.from_json(value)
    except UnexpectedAnswer:
        return
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == value


def test_each_member_that_is_missing_is_named(answer):
    paths = [path for path in members(answer) if isinstance(path[-1], str)]
    assert len(paths) == 31
    for path in paths:
        value = copy.deepcopy(answer)
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        with pytest.raises(UnexpectedAnswer) as caught:
            DetectResult.from_json(value)
        assert str(caught.value) == f"answer: {shown(path)}: missing"


def test_each_member_of_a_wrong_type_is_named(answer):
    for path in members(answer):
        for wrong in (None, "", {"a": 1}):
            if path == ("timing_ms",) and wrong == {"a": 1}:
                continue
            value = copy.deepcopy(answer)
            put(value, path, wrong)
            with pytest.raises(UnexpectedAnswer) as caught:
                DetectResult.from_json(value)
            assert shown(path) in str(caught.value)


FIRST = ("detections", 0)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ((*FIRST, "score"), 1.01),
        ((*FIRST, "score"), -0.1),
        ((*FIRST, "score"), float("nan")),
        ((*FIRST, "score"), True),
        ((*FIRST, "class_id"), -1),
        ((*FIRST, "class_id"), 1.0),
        ((*FIRST, "box"), [0.0, 0.0, 1.0]),
        ((*FIRST, "box"), [0.0, 0.0, 401.0, 1.0]),
        ((*FIRST, "box"), [0.0, 0.0, 1.0, 201.0]),
        ((*FIRST, "box"), [9.0, 0.0, 8.0, 1.0]),
        ((*FIRST, "box"), [0.0, -1.0, 8.0, 1.0]),
        (("detections", 1, "score"), 0.9),
        (("model", "version"), 0),
        (("model", "version"), "1"),
        (("model", "digest"), "ab" * 32),
        (("model", "digest"), "sha256:" + "AB" * 32),
        (("image", "width"), 0),
        (("image", "orientation_applied"), 1),
        (("image", "sha256"), "cd" * 32 + "\n"),
        (("timing_ms", "total"), float("inf")),
        (("timing_ms", "total"), 10**400),
        (("timing_ms", "batch_size"), 0),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(answer, path, wrong):
    put(answer, path, wrong)
    with pytest.raises(UnexpectedAnswer) as caught:
        DetectResult.from_json(answer)
    assert shown(path) in str(caught.value)


def test_members_of_a_newer_service_are_ignored(answer):
    expected = DetectResult.from_json(answer)
    answer["new"] = 1
    answer["detections"][0]["mask"] = []
    assert DetectResult.from_json(answer) == expected


def test_an_image_without_objects_has_no_detections(answer):
    answer["detections"] = []
    assert DetectResult.from_json(answer).detections == ()


def test_results_cannot_be_changed_and_can_be_compared_and_hashed(answer):
    result = DetectResult.from_json(answer)
    assert result == DetectResult.from_json(copy.deepcopy(answer))
    assert len({result, DetectResult.from_json(answer)}) == 1
    with pytest.raises(AttributeError):
        result.id = "other"


def test_an_error_is_text_and_json():
    error = ClqError("no such class", status=422, code="bad_parameter", request_id="r1")
    error.attempts = 3
    assert str(error) == "422 bad_parameter: no such class (request r1, 3 attempts)"
    assert error.to_dict() == {
        "type": "ClqError",
        "status": 422,
        "code": "bad_parameter",
        "detail": "no such class",
        "request_id": "r1",
    }
