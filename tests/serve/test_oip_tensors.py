"""Bodies of the Open Inference Protocol: what is written is read back, and no body is a crash."""

import contextlib
import gzip
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from clq_serve.errors import BadInferRequest, BodyTooLarge
from clq_serve.oip_compression import compress, wanted_coding
from clq_serve.oip_tensors import (
    DTYPES,
    MAX_JSON_VALUES,
    Tensor,
    bytes_array,
    parse_json_length,
    read_infer_request,
    write_infer_response,
)

NUMERIC = [name for name in DTYPES if name != "BYTES"]
BINARY_ONLY = ("FP16", "BF16")
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        count = int(np.prod(shape))
        texts = draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        return Tensor("t", datatype, bytes_array([text.encode() for text in texts], shape))
    return Tensor("t", datatype, draw(hnp.arrays(DTYPES[datatype], shape)))


def as_request(body: bytes, length: int | None) -> tuple[bytes, int | None]:
    """The body of an answer as that of a request: `outputs` become `inputs`."""
    head = json.loads(body if length is None else body[:length])
    text = json.dumps({"inputs": head["outputs"]}).encode()
    return (text, None) if length is None else (text + body[length:], len(text))


def request(shape: object, datatype: str, data: object, **more: object) -> bytes:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data, **more}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_request(
    shape: object, datatype: str, data: bytes, size: object = None
) -> tuple[bytes, int]:
    size = len(data) if size is None else size
    tensor = {"name": "x", "shape": shape, "datatype": datatype}
    text = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
    return text + data, len(text)


@settings(max_examples=150, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_tensors_come_back_as_they_were_sent(sent: list[Tensor], binary: list[bool]) -> None:
    chosen = [
        (t, b or t.datatype in BINARY_ONLY or (t.array.dtype.kind == "f"))
        for t, b in zip(sent, binary, strict=False)
    ]
    read = read_infer_request(*as_request(*write_infer_response({}, chosen)))
    for (tensor, is_binary), back in zip(chosen, read.inputs, strict=True):
        assert back.datatype == tensor.datatype
        assert back.array.dtype == tensor.array.dtype
        assert back.array.shape == tensor.array.shape
        assert back.from_json is not is_binary
        if tensor.datatype == "BYTES":
            assert back.array.tolist() == tensor.array.tolist()
        else:
            assert back.array.tobytes() == tensor.array.tobytes()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False)))
def test_finite_and_infinite_floats_survive_json(array: np.ndarray) -> None:
    body, length = write_infer_response({}, [(Tensor("t", "FP32", array), False)])
    (back,) = read_infer_request(*as_request(body, length)).inputs
    np.testing.assert_array_equal(back.array, array)


def test_bytes_are_stored_as_tritonclient_stores_them() -> None:
    elements = [b"", b"a", b"\xff\x00\xd8" * 5]
    theirs = serialize_byte_tensor(np.array(elements, object)).item()
    body, length = binary_request([3], "BYTES", theirs)
    assert read_infer_request(body, length).inputs[0].array.tolist() == elements
    array = bytes_array(elements, (3,))
    answer, length = write_infer_response({}, [(Tensor("t", "BYTES", array), True)])
    assert length is not None
    assert deserialize_bytes_tensor(answer[length:]).tolist() == elements


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]], ids=str)
def test_flat_and_nested_data_are_the_same(data: list) -> None:
    (tensor,) = read_infer_request(request([2, 3], "INT16", data), None).inputs
    np.testing.assert_array_equal(tensor.array, np.array([[1, 2, 3], [4, 5, 6]], np.int16))


def test_what_a_client_leaves_out_or_adds_does_not_matter() -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1], "parameters": None}
    tree = {"id": None, "model_name": "x", "inputs": [tensor], "outputs": None, "parameters": None}
    read = read_infer_request(json.dumps(tree).encode(), None)
    assert (read.id, read.outputs, read.binary, read.parameters) == (None, None, False, {})


def test_an_outputs_own_choice_of_binary_overrides_that_of_the_request() -> None:
    tree = json.loads(request([1], "INT8", [1]))
    tree["parameters"] = {"binary_data_output": True}
    tree["outputs"] = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
    outputs = read_infer_request(json.dumps(tree).encode(), None).outputs
    assert outputs is not None
    assert [output.binary for output in outputs] == [True, False]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "EOF"),
        (b"[1]", "object"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "recursion"),
        (b'{"inputs":{}}', "inputs"),
        (b'{"inputs":[{"name":1}]}', "no name"),
        (b'{"inputs":[{}, 1]}', "array of objects"),
        (b'{"inputs":[%s{}]}' % (b"{}," * 16), "17 inputs"),
        (b'{"id":3,"inputs":[]}', "id"),
        (b'{"parameters":{"a":[]},"inputs":[]}', "parameter 'a'"),
        (b'{"parameters":[],"inputs":[]}', "parameters is not an object"),
        (request([1], "FP8", [1]), "FP8"),
        (request([-1], "INT8", [1]), "not in 0.."),
        (request([2**40], "INT8", [1]), "not in 0.."),
        (request([1] * 9, "INT8", [1]), "8 sides"),
        (request(3, "INT8", [1]), "8 sides"),
        (request([1], None, [1]), "no datatype 'None'"),
        (request([1], [], [1]), "no datatype"),
        (request([1], "BYTES", ["\ud800"]), "hex escape"),
        (request(["1"], "INT8", [1]), "a side of its shape"),
        (request([2], "INT8", [1]), "1 values"),
        (request([2, 1], "INT8", [[1], [2, 3]]), "nested"),
        (request([2, 1], "INT8", [[1], 2]), "nested"),
        (request([2], "INT8", [[1, 2]]), "1 values"),
        (request([1], "INT8", 1), "not an array"),
        (request([1], "INT8", None), "neither"),
        (request([1], "INT8", [128]), "out of range"),
        (request([1], "UINT64", [-1]), "out of range"),
        (request([1], "INT64", [2**70]), "out of range"),
        (request([1], "INT8", [1.5]), "not int"),
        (request([1], "INT8", [True]), "not int"),
        (request([1], "INT8", ["1"]), "not int"),
        (request([1], "INT8", [None]), "not int"),
        (request([1], "BOOL", [1]), "not bool"),
        (request([1], "FP32", ["1"]), "not float or int"),
        (request([1], "FP16", [1.0]), "binary"),
        (request([1], "BF16", [1.0]), "binary"),
        (request([1], "BYTES", [1]), "not str"),
        (request([0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "FP64", []), "too large"),
        (request([1], "INT8", [1], parameters={"binary_data_size": 0}), "one of them"),
        (request([1], "INT8", [1], parameters={"shared_memory_region": "r"}), "shared memory"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_request_is_told_what_is_wrong(body: bytes, named: str) -> None:
    with pytest.raises(BadInferRequest) as caught:
        read_infer_request(body, None)
    assert named.lower() in caught.value.detail.lower()
    assert len(caught.value.detail) < 400


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (binary_request([4], "INT16", b"1234567"), "7 bytes"),
        (binary_request([4], "INT16", b"12345678", 9), "8 bytes are left"),
        (binary_request([4], "INT16", b"12345678", -1), "binary_data_size is -1"),
        (binary_request([4], "INT16", b"12345678", True), "not a whole number"),
        (binary_request([4], "INT16", b"12345678", "8"), "not a whole number"),
        (binary_request([4], "INT8", b"12345", 4), "1 bytes follow"),
        (binary_request([1], "BOOL", b"\x02"), "neither 0 nor 1"),
        (binary_request([1], "BYTES", b"\x05\x00\x00\x00abc"), "element 0"),
        (binary_request([1], "BYTES", b"\x05\x00\x00"), "element 0"),
        (binary_request([2], "BYTES", b"\x01\x00\x00\x00a"), "1 elements"),
        (binary_request([1], "BYTES", b"\xff\xff\xff\xffa"), "element 0"),
        (binary_request([1], "BYTES", bytes(4000)), "2 or more elements"),
        (binary_request([2**17], "BYTES", bytes(2**19)), "65536 are accepted"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_binary_data_are_told_what_is_wrong(made: tuple[bytes, int], named: str) -> None:
    with pytest.raises(BadInferRequest) as caught:
        read_infer_request(*made)
    assert named in caught.value.detail


@settings(max_examples=300, deadline=None)
@given(tensors(), st.data())
def test_a_damaged_body_is_read_or_refused_but_never_a_crash(
    tensor: Tensor, data: st.DataObject
) -> None:
    answer = write_infer_response({}, [(tensor, True)])
    body, length = as_request(*answer)
    at = data.draw(st.integers(0, len(body) - 1))
    changed = data.draw(
        st.one_of(
            st.just(body[:at]),
            st.binary(min_size=1, max_size=4).map(lambda new: body[:at] + new + body[at + 1 :]),
        )
    )
    with contextlib.suppress(BadInferRequest):
        read_infer_request(changed, parse_json_length(str(length), len(changed)))


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=4),
    ),
    st.lists(st.integers(-1, 5), max_size=4),
    st.sampled_from(sorted(DTYPES)),
)
def test_any_json_is_read_or_refused_but_never_a_crash(
    data: object, shape: list[int], datatype: str
) -> None:
    try:
        (tensor,) = read_infer_request(request(shape, datatype, data), None).inputs
    except BadInferRequest:
        return
    assert list(tensor.array.shape) == shape


def test_strings_do_not_take_the_place_of_the_longest_in_memory() -> None:
    body = request([400_001], "FP32", ["x" * 2_000_000] + [""] * 400_000)
    with pytest.raises(BadInferRequest, match="not float or int"):
        read_infer_request(body, None)


def test_large_json_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(BodyTooLarge, match="binary data"):
        read_infer_request(b"{}," * (MAX_JSON_VALUES // 2 + 1), None)


@pytest.mark.parametrize("value", ["-1", "11", "ten", "", "1e1", "9" * 400, "+3", "0x1"])
def test_a_json_length_that_is_none_is_refused_in_tritons_words(value: str) -> None:
    with pytest.raises(BadInferRequest, match=r"should be in range \(0, 10\), got"):
        parse_json_length(value, 10)


def test_a_json_length_is_a_number_of_bytes() -> None:
    assert parse_json_length(None, 10) is None
    assert [parse_json_length(text, 10) for text in ("0", " 10 ")] == [0, 10]


def test_codings_are_those_of_python_and_tritonclient() -> None:
    assert gzip.decompress(compress(b"x", "gzip")) == b"x"
    assert zlib.decompress(compress(b"x", "deflate")) == b"x"


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP", "gzip"),
        ("br", None),
        ("*", None),
        ("identity", None),
        ("gzip, deflate, br", None),  # what aiohttp always sends
        ("gzip, deflate", None),
        ("gzip;q=1.0, identity;q=0.5", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=nonsense", None),
        ("gzip;level=3", None),
        ("br;q=1, gzip;q=0.1", "gzip"),
        (",;,", None),
    ],
)
def test_answers_are_compressed_only_for_who_asks_for_it(header: str, wanted: str | None) -> None:
    assert wanted_coding(header) == wanted


def test_binary_numbers_are_little_endian_rows() -> None:
    body, length = binary_request([2, 2], "FP32", struct.pack("<4f", 1, 2, 3, 4))
    np.testing.assert_array_equal(
        read_infer_request(body, length).inputs[0].array, [[1, 2], [3, 4]]
    )
