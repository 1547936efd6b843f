"""The members of a JSON body: {"image": {"b64": "..."}, "score": 0.5, ...}."""

import base64
import json
from collections.abc import Sequence

from clq_serve.errors import BadRequest


def parse_json_body(body: bytes, options: Sequence[str]) -> tuple[list[bytes], dict[str, str]]:
    """The images (`image`, or the list `images`) and the options of a body.

    options  the names that are accepted besides the images

    Raises BadRequest with code bad_json, missing_image or unknown_field.
    """
    if json_values(body) > _MAX_VALUES:
        raise _bad(f"it has more than {_MAX_VALUES} values")
    try:
        tree = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except RecursionError:
        raise _bad("it is nested too deeply") from None
    except ValueError as err:  # of the syntax, of the encoding, or of the two hooks
        raise _bad(str(err)) from None
    if not isinstance(tree, dict):
        raise _bad("it is not an object; " + _SHAPE)
    fields: dict[str, str] = {}
    for name, value in tree.items():
        if name in ("image", "images"):
            continue
        if name not in options:
            accepted = ["image", "images", *options]
            raise BadRequest(
                f"unknown member {name[:80]!r}; accepted: {', '.join(accepted)}",
                code="unknown_field",
                extra={"accepted": accepted},
            )
        fields[name] = _option(name, value)
    if ("image" in tree) == ("images" in tree):
        raise BadRequest("send either image or images; " + _SHAPE, code="missing_image")
    if "image" in tree:
        return [_image("image", tree["image"])], fields
    if not isinstance(tree["images"], list):
        raise _bad("images is not a list; " + _SHAPE)
    return [_image(f"images[{i}]", item) for i, item in enumerate(tree["images"])], fields


def json_values(text: bytes) -> int:
    """At least as many values as the JSON `text` has, without parsing it.

    Each becomes an object: 20 MB of `[],[],...` took 0.6 GB and held up everything for 6 s.
    """
    return text.count(b",") + text.count(b"[") + text.count(b"{")


_MAX_VALUES = 20_000  # thousands of images and class names, and far from a burden
_SHAPE = 'accepted: {"image": {"b64": BASE64}} or {"images": [{"b64": BASE64}, ...]}'


def _bad(what: str) -> BadRequest:
    return BadRequest(f"the body is not the JSON that is accepted: {what}", code="bad_json")


def _image(where: str, value: object) -> bytes:
    if not isinstance(value, dict) or list(value) != ["b64"] or not isinstance(value["b64"], str):
        raise _bad(f"{where} is not an object with the one member b64, a text; {_SHAPE}")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except ValueError as err:
        raise _bad(f"{where}.b64 is not base64: {err}") from None


def _option(name: str, value: object) -> str:
    """The value as it would stand in a query, so that both mean the same."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)  # classes
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _bad(f"{name} is neither a text nor a number, nor a list of texts")
    return str(value)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise ValueError("a member is given more than once")
    return tree
