"""Settings: defaults, variables, flags; anything unknown or wrong is refused."""

from pathlib import Path

import pytest

from clq_serve.errors import SettingsError
from clq_serve.settings import Settings, allowed_cores, read_settings


def test_defaults() -> None:
    settings = read_settings({"PATH": "/bin", "CLQ_URL": "ignored"}, {})
    assert (settings.host, settings.port, settings.bundle) == ("127.0.0.1", 8000, None)
    assert settings.threads == allowed_cores() >= 1
    assert settings.max_body_bytes == 20 * 1024 * 1024
    assert settings.image_limits.max_pixels == 50_000_000


def test_a_variable_overrides_the_default_and_a_flag_the_variable() -> None:
    environ = {"CLQ_SERVE_PORT": "9000", "CLQ_SERVE_BUNDLE": "a/1", "CLQ_SERVE_DRAIN_S": "1.5"}
    settings = read_settings(environ, {"port": 9001, "host": None})
    assert (settings.port, settings.bundle, settings.drain_s) == (9001, Path("a/1"), 1.5)
    assert settings.host == "127.0.0.1"


def test_an_unknown_variable_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({"CLQ_SERVE_PROT": "1"}, {})
    assert str(caught.value).startswith("CLQ_SERVE_PROT: unknown variable; accepted: ")
    for field in Settings.model_fields:
        assert f"CLQ_SERVE_{field.upper()}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "http"),
        ("THREADS", "0"),
        ("MAX_BODY_BYTES", "20MiB"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("DRAIN_S", "-1"),
        ("LOG_LEVEL", "loud"),
        ("MAX_PENDING", ""),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({f"CLQ_SERVE_{name}": value}, {})
    assert f"CLQ_SERVE_{name} (--{name.lower().replace('_', '-')}): {value!r}" in str(caught.value)


def test_every_setting_says_what_it_means() -> None:
    without = [name for name, field in Settings.model_fields.items() if not field.description]
    assert without == []


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
