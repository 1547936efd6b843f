"""What changes the service by the Open Inference Protocol, and who may do that."""

import asyncio
import functools
import logging
from pathlib import Path

import pytest
import tritonclient.http.aio as triton_aio
from key_files import entry, write
from triton_clients import (
    Call,
    address,
    aio_call,
    image_input,
    picture,
    sync_call,
)
from tritonclient.utils import InferenceServerException

PATIENCE_S = 60  # how long anything may take on a machine that is busy with something else


@pytest.fixture(params=[sync_call, aio_call], ids=["sync", "aio"])
def call(request: pytest.FixtureRequest, server: str) -> Call:
    """call(method, ...) with a client of one kind against the shared server."""
    return functools.partial(request.param, server)


def test_trace_and_log_settings_can_be_read(call: Call) -> None:
    assert call("get_trace_settings")["trace_level"] == ["OFF"]
    assert call("get_trace_settings", "tiny") == call("get_trace_settings")
    assert call("get_log_settings")["log_error"] is True


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("load_model", ["tiny"]),
        ("unload_model", ["tiny"]),
        ("update_log_settings", [{"log_verbose_level": 1}]),
        ("update_trace_settings", ["", {"trace_level": ["OFF"]}]),
    ],
)
def test_nothing_changes_by_the_public_port(call: Call, method: str, arguments: list) -> None:
    with pytest.raises(InferenceServerException, match="public_model_control") as caught:
        call(method, *arguments)
    assert caught.value.status() == "403"
    assert call("is_model_ready", "tiny")


def test_models_are_loaded_and_unloaded_where_that_is_allowed(
    call: Call, start_server, repository
) -> None:
    repository("first", 1)
    repository("second", 1)
    own = functools.partial(
        call.func,
        start_server(bundle=None, models=repository.root, public_model_control=True),
    )
    for name in ("second", "second_image"):
        own("unload_model", name)
        assert not own("is_model_ready", "second")
        assert not own("is_model_ready", "second_image")
        index = {line["name"]: line for line in own("get_model_repository_index")}
        assert index["second"]["state"] in ("UNAVAILABLE", "UNLOADING")
        assert index["second_image"]["state"] == index["second"]["state"]
        assert index["second"]["reason"]
        own("load_model", name)
        assert own("is_model_ready", "second_image", "1")
    with pytest.raises(InferenceServerException, match="no model 'third'") as caught:
        own("load_model", "third")
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="accepted: none"):
        own("load_model", "second", config="{}")
    with pytest.raises(InferenceServerException, match="accepted: none"):
        own("load_model", "second", config="{}", files={"file:1/model.onnx": b"evil"})
    own("update_trace_settings", "second", {"trace_level": ["OFF"]})
    with pytest.raises(InferenceServerException, match="cannot be changed"):
        own("update_trace_settings", "second", {"trace_level": ["TIMESTAMPS"]})


def test_keys_travel_in_the_headers_of_the_client(call: Call, start_server, tmp_path: Path) -> None:
    write(tmp_path / "keys.toml", entry("cam", "infer"), entry("ops", "admin"))
    own = functools.partial(
        call.func, start_server(keys=tmp_path / "keys.toml", public_model_control=True)
    )
    cam, ops = ({"Authorization": f"Bearer {key}"} for key in ("cam", "ops"))
    given = [image_input(picture())]
    assert own("is_server_ready")
    assert own("is_model_ready", "tiny")
    assert own("infer", "tiny_image", given, headers=dict(cam)).as_numpy("num_dets") == 3
    own("load_model", "tiny", headers=ops)
    for status, method, arguments, headers in (
        ("401", "infer", ["tiny_image", given], {}),
        ("401", "get_server_metadata", [], {"X-API-Key": "unknown"}),
        ("403", "load_model", ["tiny"], cam),
        ("403", "update_log_settings", [{"log_info": True}], cam),
    ):
        with pytest.raises(InferenceServerException) as caught:
            own(method, *arguments, headers=dict(headers))
        assert caught.value.status() == status
        assert "decoding the response" not in caught.value.message()


def test_the_log_can_be_made_more_and_less_talkative(call: Call, start_server) -> None:
    own = functools.partial(call.func, start_server(public_model_control=True))
    before = own("get_log_settings")
    try:
        assert own("update_log_settings", {"log_verbose_level": 1})["log_verbose_level"] == 1
        quiet = {"log_verbose_level": 0, "log_info": False}
        after = own("update_log_settings", quiet)
        assert (after["log_info"], after["log_warning"]) == (False, True)
        assert own("get_log_settings") == after
        for wrong in ({"log_file": "/tmp/x"}, {"log_inf": True}, {"log_info": 1}):
            with pytest.raises(InferenceServerException) as caught:
                own("update_log_settings", wrong)
            assert caught.value.status() == "400"
    finally:
        logging.getLogger("clq_serve").setLevel(logging.NOTSET)
    assert own("get_log_settings") == before


def test_no_request_fails_while_its_model_is_loaded_again(start_server, repository) -> None:
    repository("first", 1)
    server = start_server(bundle=None, models=repository.root, public_model_control=True)

    async def load_under_load() -> list[int]:
        async with triton_aio.InferenceServerClient(address(server)) as client:
            found: list[int] = []
            done = asyncio.Event()

            async def ask() -> None:
                while not done.is_set():
                    result = await client.infer("first_image", [image_input(picture(2))])
                    found.append(result.as_numpy("num_dets").item())

            askers = [asyncio.create_task(ask()) for _ in range(4)]
            for loads in range(1, 6):
                await client.load_model("first")
                async with asyncio.timeout(PATIENCE_S):
                    while len(found) < 4 * loads:
                        await asyncio.sleep(0.01)
            done.set()
            await asyncio.gather(*askers)
            return found

    found = asyncio.run(load_under_load())
    assert set(found) == {2}
