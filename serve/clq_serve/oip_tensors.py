"""The bodies of Open Inference Protocol v2 requests and answers: JSON, then binary tensors.

A body is JSON alone, or JSON of a known length and behind it, in the order listed, the bytes of
every tensor that has `binary_data_size`: little endian, no padding, row by row; an element of BYTES
is its length as uint32 and then itself.  Nothing in here knows what the models take.
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from clq_serve.errors import BadInferRequest, BodyTooLarge
from clq_serve.json_bodies import json_values

Parameters = dict[str, str | int | float | bool]

DTYPES = {  # datatype of the protocol -> how numpy reads its bytes
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no such type: its bits
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),  # elements are Python's bytes
}
_JSON_LEAVES: dict[str, set[type]] = {
    "BOOL": {bool},
    "FP16": set(),  # binary only, as in Triton
    "BF16": set(),
    "FP32": {int, float},
    "FP64": {int, float},
    "BYTES": {str},
}
MAX_JSON_VALUES = 2_000_000  # an object in memory each: this many take up to 200 MB, for a moment
MAX_ELEMENTS = 2**16  # of a BYTES tensor
_MAX_TENSORS = 16  # and as many named outputs
_MAX_RANK = 8
_MAX_SIDE = 2**31 - 1
_JSON: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor with its name and values.

    datatype   a key of DTYPES, which gives the dtype of `array`
    from_json  whether its values came as JSON (strings of BYTES are then in UTF-8)
    """

    name: str
    datatype: str
    array: npt.NDArray[Any]
    from_json: bool = False


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that the request names.

    binary          whether its values go behind the JSON of the answer
    classification  how many of the best classes to name instead of the values; 0 = the values
    """

    name: str
    binary: bool
    classification: int


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request, its form checked and its tensors decoded, but nothing of it compared with a model.

    outputs  None = all, each `binary` or not
    """

    id: str | None
    parameters: Parameters
    inputs: tuple[Tensor, ...]
    outputs: tuple[WantedOutput, ...] | None
    binary: bool


@dataclass(frozen=True, slots=True)
class _Described:
    """An input as its JSON describes it."""

    name: str
    datatype: str
    shape: list[int]
    size: int | None  # binary_data_size
    data: Any


def parse_json_length(header: str | None, body_bytes: int) -> int | None:
    """The value of Inference-Header-Content-Length; None = absent: the whole body is JSON."""
    if header is None:
        return None
    value = header.strip()
    if not re.fullmatch(r"[0-9]{1,15}", value) or int(value) > body_bytes:
        raise BadInferRequest(
            f"inference header size should be in range (0, {body_bytes}), got: {value[:40]!r}"
        )
    return int(value)


def read_infer_request(body: bytes, json_length: int | None) -> InferRequest:
    """The request in `body`, whose first json_length bytes (None: all) are JSON.

    Members that the protocol does not have are ignored, and null is as if it were not there.

    Raises BadInferRequest; BodyTooLarge when there are more than MAX_JSON_VALUES in the JSON.
    """
    tree = parse_object(body if json_length is None else body[:json_length])
    request_id = tree.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadInferRequest("id is not a string")
    parameters = _parameters(tree, "the request")
    binary = _flag(parameters, "binary_data_output", False)
    tail = memoryview(body)[len(body) if json_length is None else json_length :]
    inputs: list[Tensor] = []
    for each in _objects(tree, "inputs"):
        described = _describe(each)
        size = described.size or 0
        if not 0 <= size <= len(tail):
            raise BadInferRequest(
                f"input {described.name[:80]!r}: binary_data_size is {size}, but {len(tail)} bytes "
                "are left of the body"
            )
        inputs.append(_decode(described, tail[:size]))
        tail = tail[size:]
    if len(tail):
        raise BadInferRequest(f"{len(tail)} bytes follow the last binary tensor of the request")
    outputs = tuple(_wanted_output(each, binary) for each in _objects(tree, "outputs"))
    return InferRequest(request_id, parameters, tuple(inputs), outputs or None, binary)


def parse_object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is.  Raises BadInferRequest or BodyTooLarge."""
    values = json_values(text)
    if values > MAX_JSON_VALUES:
        raise BodyTooLarge(
            f"the JSON of the request has about {values} values; {MAX_JSON_VALUES} are accepted: "
            "send large tensors as binary data",
            extra={"limit": MAX_JSON_VALUES, "observed": values},
        )
    try:
        tree = _JSON.validate_json(text)
    except ValidationError as err:
        raise BadInferRequest(f"the request: {err.errors(include_input=False)[0]['msg']}") from None
    if not isinstance(tree, dict):
        raise BadInferRequest("the request is not a JSON object")
    return tree


def write_infer_response(
    head: dict[str, Any], outputs: Sequence[tuple[Tensor, bool]]
) -> tuple[bytes, int | None]:
    """The body of an answer and the length of its JSON; None = it is JSON alone.

    head     members of the answer other than `outputs`
    outputs  each with whether its values are to be binary
    """
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor, binary in outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.array.shape),
        }
        if binary:
            tail.append(_to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        elif tensor.datatype == "BYTES":
            entry["data"] = [element.decode() for element in tensor.array.ravel()]
        else:
            entry["data"] = tensor.array.ravel().tolist()
        described.append(entry)
    text = json.dumps(head | {"outputs": described}, separators=(",", ":")).encode()
    return (b"".join([text, *tail]), len(text)) if tail else (text, None)


def bytes_array(elements: Sequence[bytes], shape: Sequence[int]) -> npt.NDArray[np.object_]:
    """`elements` as the array of a BYTES tensor."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _objects(tree: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects `name` of a request; empty if it is not there."""
    found = tree.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise BadInferRequest(f"{name} is not an array of objects")
    if len(found) > _MAX_TENSORS:
        raise BadInferRequest(f"there are {len(found)} {name}; {_MAX_TENSORS} are accepted")
    if not all(isinstance(each.get("name"), str) for each in found):
        raise BadInferRequest(f"one of the {name} has no name, which is a string")
    return found


def _parameters(tree: dict[str, Any], where: str) -> Parameters:
    found = tree.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInferRequest(f"{where}: parameters is not an object")
    for name, value in found.items():
        if not isinstance(value, str | int | float):
            raise BadInferRequest(
                f"{where}: parameter {name[:80]!r} is not a string, number, true or false"
            )
    return found


def _describe(tree: dict[str, Any]) -> _Described:
    name: str = tree["name"]
    datatype, shape, data = (tree.get(member) for member in ("datatype", "shape", "data"))
    where = f"input {name[:80]!r}"
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise BadInferRequest(
            f"{where}: there is no datatype {str(datatype)[:20]!r}; accepted: {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
        raise BadInferRequest(f"{where}: shape is not an array of {_MAX_RANK} sides at most")
    if not all(type(side) is int and 0 <= side <= _MAX_SIDE for side in shape):
        raise BadInferRequest(f"{where}: a side of its shape is not in 0..{_MAX_SIDE}")
    parameters = _parameters(tree, where)
    if "shared_memory_region" in parameters:
        raise BadInferRequest(f"{where}: shared memory is not supported; send the data")
    size = parameters.get("binary_data_size")
    if size is not None and type(size) is not int:
        raise BadInferRequest(f"{where}: binary_data_size is not a whole number")
    if (size is None) == (data is None):
        raise BadInferRequest(
            f"{where}: has {'neither' if size is None else 'both'} data and binary_data_size; "
            "accepted: one of them"
        )
    return _Described(name, datatype, shape, size, data)


def _decode(given: _Described, binary: memoryview) -> Tensor:
    where = f"input {given.name[:80]!r}"
    if given.size is None:
        return Tensor(given.name, given.datatype, _from_json(given, where), from_json=True)
    return Tensor(given.name, given.datatype, _from_bytes(given, binary, where))


def _from_bytes(given: _Described, data: memoryview, where: str) -> npt.NDArray[Any]:
    count = math.prod(given.shape)
    if given.datatype == "BYTES":
        return _shaped(bytes_array(_split_elements(data, count, where), (-1,)), given, where)
    dtype = DTYPES[given.datatype]
    if len(data) != count * dtype.itemsize:
        raise BadInferRequest(
            f"{where}: {len(data)} bytes of binary data, but {given.datatype} of shape "
            f"{given.shape} has {count * dtype.itemsize}"
        )
    if given.datatype == "BOOL" and not (np.frombuffer(data, np.uint8) <= 1).all():
        raise BadInferRequest(f"{where}: a byte of BOOL is neither 0 nor 1")
    return _shaped(np.frombuffer(data, dtype), given, where)


def _split_elements(data: memoryview, count: int, where: str) -> list[bytes]:
    """The `count` elements of a BYTES tensor, each stored behind its length."""
    if count > MAX_ELEMENTS:
        raise BadInferRequest(f"{where}: {count} elements; {MAX_ELEMENTS} are accepted")
    elements: list[bytes] = []
    at = 0
    while at < len(data) and len(elements) <= count:
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise BadInferRequest(
                f"{where}: element {len(elements)} ends behind the {len(data)} bytes of the tensor"
            )
        elements.append(bytes(data[start:at]))
    if len(elements) != count:
        more = " or more" if len(elements) > count else ""
        raise BadInferRequest(f"{where}: {len(elements)}{more} elements, but its shape has {count}")
    return elements


def _from_json(given: _Described, where: str) -> npt.NDArray[Any]:
    accepted = _JSON_LEAVES.get(given.datatype, {int})
    if not accepted:
        raise BadInferRequest(f"{where}: {given.datatype} has no JSON form; send binary data")
    leaves = _flatten(given.data, given.shape, where)
    if not set(map(type, leaves)) <= accepted:
        names = " or ".join(sorted(kind.__name__ for kind in accepted))
        raise BadInferRequest(f"{where}: a value is not {names}, as {given.datatype} needs")
    if given.datatype == "BYTES":
        return _shaped(bytes_array([leaf.encode() for leaf in leaves], (-1,)), given, where)
    try:
        with np.errstate(over="ignore"):  # infinity is a number of FP32
            return _shaped(np.array(leaves, DTYPES[given.datatype]), given, where)
    except OverflowError:
        raise BadInferRequest(f"{where}: a value is out of range for {given.datatype}") from None


def _flatten(data: object, shape: list[int], where: str) -> list[Any]:
    """The values in row-major order; `data` is flat, or nested exactly as `shape` says."""
    if not isinstance(data, list):
        raise BadInferRequest(f"{where}: data is not an array")
    if data and isinstance(data[0], list):
        for side in shape[1:]:
            if set(map(type, data)) != {list} or set(map(len, data)) != {side}:
                raise BadInferRequest(f"{where}: data is not nested as its shape {shape} says")
            data = list(itertools.chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise BadInferRequest(
            f"{where}: data has {len(data)} values, but its shape {shape} has {math.prod(shape)}"
        )
    return data


def _shaped(array: npt.NDArray[Any], given: _Described, where: str) -> npt.NDArray[Any]:
    try:
        return array.reshape(given.shape)
    except ValueError:  # an empty array with sides too large for numpy
        raise BadInferRequest(f"{where}: shape {given.shape} is too large") from None


def _to_bytes(tensor: Tensor) -> bytes:
    if tensor.datatype != "BYTES":
        return tensor.array.astype(DTYPES[tensor.datatype], copy=False).tobytes()
    elements = tensor.array.ravel()
    return b"".join(part for e in elements for part in (len(e).to_bytes(4, "little"), e))


def _wanted_output(tree: dict[str, Any], binary: bool) -> WantedOutput:
    where = f"output {tree['name'][:80]!r}"
    parameters = _parameters(tree, where)
    if "shared_memory_region" in parameters:
        raise BadInferRequest(f"{where}: shared memory is not supported")
    count = parameters.get("classification", 0)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise BadInferRequest(f"{where}: classification is not a whole number, 0 or more")
    return WantedOutput(tree["name"], _flag(parameters, "binary_data", binary), count)


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadInferRequest(f"parameter {name} is not true or false")
    return value
