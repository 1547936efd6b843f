"""What /openapi.json says beyond what the framework finds out: bodies, options, problems.

`python -m clq_serve.openapi` prints the whole document; docs/openapi.json is a copy of it.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from clq_serve import problems
from clq_serve.formats import IMAGE_TYPES
from clq_serve.parameters import PRIORITY_HEADER, TIMEOUT_HEADER, DetectParameters
from clq_serve.responses import Problem
from clq_serve.service import Priority

# The default model, a model in its newest version, a version.
MODEL_PREFIXES = ("/v1", "/v1/models/{name}", "/v1/models/{name}/versions/{version}")
MODEL_PROBLEMS = {404: "`unknown_model`: no such model or version is loaded"}

_BODY_PROBLEMS = MODEL_PROBLEMS | {
    400: "`empty_body`, `missing_image`, `unknown_field`, `bad_form`, `bad_json`, `bad_encoding`: "
    "the body is not what is accepted",
    406: "`not_acceptable`: there is no answer of a type that Accept names",
    408: "`upload_timeout`: the body did not arrive in time",
    413: "`body_too_large`: too many bytes",
    415: "`wrong_content_type`, `unsupported_encoding`: see `accepted`",
    422: "`bad_parameter`: an option is unknown, repeated or out of range; see `parameter`",
    500: "`internal`: a bug in the service",
    503: "`overloaded`, `engine_down`: no room, or no engine; Retry-After says when to try again",
}
_DETECT_PROBLEMS = _BODY_PROBLEMS | {
    400: f"`several_images`, {_BODY_PROBLEMS[400]}",
    413: "`body_too_large`, `image_too_large`: see `limit` and `observed`",
    415: "`wrong_content_type`, `unsupported_encoding`, `unsupported_image`: see `accepted`",
    422: f"{_BODY_PROBLEMS[422]}; `truncated`, `corrupt`, `decoder_crashed`, `too_many_frames`: "
    "the image",
    504: "`deadline_exceeded`: no result in time; `stage` says where the time ran out",
}
_BATCH_PROBLEMS = _BODY_PROBLEMS | {400: f"`too_many_images`, {_BODY_PROBLEMS[400]}"}

_HEADERS = {
    "X-Request-ID": "the id of the request: as sent, or made",
    "X-Model-Digest": "sha256:<hex> of the model that answered",
}
_DETECT_HEADERS = _HEADERS | {
    "ETag": "equal for equal image, model and options; If-None-Match with it is answered 304",
    "Server-Timing": "the stages, milliseconds",
    "Cache-Status": "RFC 9211; only if the service keeps answers",
}


def _described(headers: dict[str, str]) -> dict[str, Any]:
    return {
        name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }


_BINARY = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_BASE64 = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}

DETECT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the detections, in the format that `format` and Accept ask for",
        "headers": _described(_DETECT_HEADERS),
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "example": "0 0.868750 0.515625 0.059531 0.048125 0.696616\n",
            },
            **{media_type: {"schema": _BINARY} for media_type in IMAGE_TYPES},
        },
    },
    304: {"description": "If-None-Match names the ETag of the answer; there is no body"},
    **problems.documented(_DETECT_PROBLEMS),
}
BATCH_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "an item for each image, in their order, whatever became of it",
        "headers": _described(_HEADERS),
    },
    **problems.documented(_BATCH_PROBLEMS),
}

COMPAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "the detections", "headers": _described(_HEADERS)},
    **problems.documented({s: d for s, d in _DETECT_PROBLEMS.items() if s != 406}),
}


_PROBES = ("/ping", "/healthz", "/readyz", "/startupz")  # open to everybody
_KEY_PROBLEMS = {
    401: "`no_key`, `unknown_key`: keys are configured, and this request has none of them",
    403: "`wrong_scope`: the key is not for this",
    429: "`key_over_rate`, `key_busy`: the key asks for too much; see Retry-After",
    500: _BODY_PROBLEMS[500],
}
_KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI document of the public application, whether or not it has keys."""
    schema = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    schema["components"]["schemas"]["Problem"] = Problem.model_json_schema()
    schema["components"]["securitySchemes"] = _KEY_SCHEMES
    for path, operations in schema["paths"].items():
        for operation in operations.values() if path not in _PROBES else ():
            described = operation["responses"]
            for status, answer in problems.documented(_KEY_PROBLEMS).items():
                described.setdefault(str(status), answer)
            operation["responses"] = dict(sorted(described.items()))
            operation["security"] = [{}, *({name: []} for name in _KEY_SCHEMES)]
    return schema


def path_parameters(path: str) -> list[dict[str, Any]]:
    """The parameters that a path template has."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    version = {"name": "version", "in": "path", "required": True}
    version["schema"] = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
    return [p for p in (name, version) if f"{{{p['name']}}}" in path]


def operation(path: str, options: Sequence[str], *, many: bool) -> dict[str, Any]:
    """The parameters and the body of a detect route."""
    schemas = _option_schemas(options)
    query = [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in schemas.items()
    ]
    headers = [
        _header(TIMEOUT_HEADER, "what the client gives the request, milliseconds", "integer"),
        _header(PRIORITY_HEADER, "the option `priority`", "string", [str(p) for p in Priority]),
        _header("X-Request-ID", "1 to 128 of A-Z a-z 0-9 . _ -; another one is replaced", "string"),
    ]
    if not many:
        headers.append(_header("If-None-Match", "the ETag of an answer that is there", "string"))
    return {
        "parameters": [*path_parameters(path), *query, *headers],
        "requestBody": {
            "required": True,
            "description": "JPEG, PNG, WebP, AVIF or BMP, judged by the bytes alone; the body may "
            "be compressed (Content-Encoding gzip or deflate)",
            "content": _bodies(schemas, many),
        },
    }


def torchserve_operation(path: str) -> dict[str, Any]:
    """The parameters and the body of /predictions/NAME[/VERSION]."""
    form = {
        "type": "object",
        "properties": {"data": _BINARY},
        "required": ["data"],
        "additionalProperties": False,
    }
    return {
        "parameters": path_parameters(path),
        "requestBody": {
            "required": True,
            "description": "the image as it is, whatever Content-Type says, or a form",
            "content": {
                "application/octet-stream": {"schema": _BINARY},
                "multipart/form-data": {"schema": form},
            },
        },
    }


def deepstack_operation() -> dict[str, Any]:
    """The body of /v1/vision/detection."""
    score = _option_schemas(["score"])["score"]
    form = {
        "type": "object",
        "properties": {
            "image": _BINARY,
            "min_confidence": score,
            "api_key": {"type": "string", "description": "not looked at; keys go into a header"},
        },
        "required": ["image"],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def _bodies(options: dict[str, Any], many: bool) -> dict[str, Any]:
    files = {"type": "array", "items": _BINARY, "minItems": 1} if many else _BINARY
    form = {
        "type": "object",
        "properties": {"image": files, **options},
        "required": ["image"],
        "additionalProperties": False,
        "description": "the field may also be called file, images or files",
    }
    images = {"images": {"type": "array", "items": _BASE64, "minItems": 1}} if many else {}
    in_json = dict(options)
    for name, other in (("classes", _TEXTS), ("image_id", {"type": "integer"})):
        if name in in_json:
            in_json[name] = {
                "anyOf": [{"type": "string"}, other],
                "description": in_json[name]["description"],
            }
    tree = {
        "type": "object",
        "properties": {**(images or {"image": _BASE64}), **in_json},
        "required": ["images" if many else "image"],
        "additionalProperties": False,
    }
    raw = {"schema": _BINARY}
    return {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": tree},
        "image/*": raw,
        "application/octet-stream": raw,
    }


def _option_schemas(options: Sequence[str]) -> dict[str, Any]:
    """JSON schemas of the options, without the `null` that stands for "not given"."""
    document = DetectParameters.model_json_schema()
    schemas = {}
    for name in options:
        schema = dict(document["properties"][name])
        branches = [b for b in schema.pop("anyOf", []) if b.get("type") != "null"]
        schema |= branches[0] if branches else {}
        reference = schema.pop("$ref", "").rpartition("/")[2]
        schema |= document["$defs"][reference] if reference else {}
        schema.pop("title", None)
        schema.pop("default", None)
        description = document["properties"][name].get("description")
        schemas[name] = schema | ({"description": description} if description else {})
    return schemas


def _header(
    name: str, description: str, kind: str, accepted: list[str] | None = None
) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    if kind == "integer":
        schema |= {"minimum": 1, "maximum": 999_999_999}
    if accepted is not None:
        schema["enum"] = accepted
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema,
    }


def main() -> None:
    """Prints the document of the public application."""
    from clq_serve.app import create_app  # not above: the application imports this module
    from clq_serve.settings import Settings

    print(json.dumps(create_app(Settings()).openapi(), indent=1))


if __name__ == "__main__":
    main()
