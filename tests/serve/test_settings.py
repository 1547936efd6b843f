"""Settings: defaults, a file, variables, flags; anything unknown or wrong is refused."""

import tomllib
from pathlib import Path

import pytest

from clq_serve.configuration import read_settings, shown, template
from clq_serve.cores import allowed_cores
from clq_serve.errors import SettingsError
from clq_serve.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_defaults() -> None:
    settings = read_settings({"PATH": "/bin", "CLQ_URL": "ignored"}, {})
    assert (settings.host, settings.port, settings.bundle) == ("127.0.0.1", 8000, None)
    assert settings.threads == allowed_cores() >= 1
    assert settings.max_body_bytes == 20 * 1024 * 1024
    assert settings.image_limits.max_pixels == 50_000_000


def test_flag_goes_before_variable_before_file_before_default(tmp_path: Path) -> None:
    file = tmp_path / "clq.toml"
    file.write_text('port = 1\ndrain_s = 1\nmax_pending = 1\nmax_side = 1\nbundle = "a/1"\n')
    environ = {
        "CLQ_SERVE_CONFIG": str(file),
        "CLQ_SERVE_PORT": "2",
        "CLQ_SERVE_DRAIN_S": "2",
        "CLQ_SERVE_MAX_PENDING": "2",
    }
    settings = read_settings(environ, {"port": 3, "drain_s": 3, "host": None}, ["port=4"])
    assert settings.port == 4
    assert settings.drain_s == 3
    assert settings.max_pending == 2
    assert settings.max_side == 1
    assert settings.bundle == Path("a/1")
    assert settings.host == "127.0.0.1"


def test_the_flag_names_the_file_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("port = 1\n")
    settings = read_settings({"CLQ_SERVE_CONFIG": "none"}, {}, config=tmp_path / "a.toml")
    assert settings.port == 1


@pytest.mark.parametrize(
    ("environ", "assignments", "words"),
    [
        ({"CLQ_SERVE_PROT": "1"}, [], ["CLQ_SERVE_PROT", "did you mean CLQ_SERVE_PORT?"]),
        ({"CLQ_SERVE_ZZZ": "1"}, [], ["CLQ_SERVE_ZZZ", "`clq-serve settings` lists them"]),
        ({}, ["max_pendin=3"], ["--set max_pendin", "did you mean max_pending?"]),
        ({}, ["max_pending"], ["--set max_pending", "NAME=VALUE"]),
        ({}, ["max_pending=x"], ["--set max_pending: 'x': ", "integer"]),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest(
    environ: dict[str, str], assignments: list[str], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ, {}, assignments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prot = 1\n", "prot: there is no such setting; did you mean port?"),
        ("[server]\nport = 1\n", "server: there is no such setting"),
        ("port = 99999\n", "port: 99999: Input should be less than or equal to 65535"),
        ("port 1\n", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "clq.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_settings({}, {}, config=file)
    assert str(caught.value).startswith(f"{file}: ")
    assert word in str(caught.value)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        read_settings({"CLQ_SERVE_CONFIG": str(tmp_path / "none.toml")}, {})


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
    assert f"CLQ_SERVE_{name}: {value!r}" in str(caught.value)


def test_the_variable_that_kubernetes_sets_for_a_service_is_explained() -> None:
    with pytest.raises(SettingsError, match="enableServiceLinks"):
        read_settings({"CLQ_SERVE_PORT": "tcp://10.0.0.1:8000"}, {})


def test_the_start_shows_what_differs_and_what_matters() -> None:
    line = shown(Settings(threads=1, max_side=7))
    assert line == "host=127.0.0.1 port=8000 threads=1 max_side=7"


def test_a_password_in_a_url_is_masked() -> None:
    line = shown(Settings(threads=1, otel_endpoint="http://me:secret@collector:4318"))
    assert "otel_endpoint=http://***@collector:4318" in line


def test_every_setting_says_what_it_means() -> None:
    without = [name for name, field in Settings.model_fields.items() if not field.description]
    assert without == [], "write a docstring below each of these fields"


def test_the_template_is_a_file_of_the_defaults() -> None:
    uncommented = [
        line.removeprefix("#")
        for line in template().splitlines()
        if line.startswith("#") and not line.startswith("# ") and not line.endswith(" = ...")
    ]
    values = tomllib.loads("\n".join(uncommented))
    assert Settings.model_validate(values) == Settings()
    for name in Settings.model_fields:
        assert f"\n#{name} = " in template()


def test_the_document_lists_the_settings_as_they_are() -> None:
    _, _, rest = DOCUMENT.read_text().partition("```toml\n")
    listed, _, _ = rest.partition("```")
    assert listed == template(), (
        "docs/settings.md is out of date; write it anew:  python tests/serve/test_settings.py"
    )


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    unbounded = allowed_cores(tmp_path / "none")
    assert allowed_cores(tmp_path) == (cores or unbounded)


def write_document() -> None:
    head, fence, _ = DOCUMENT.read_text().partition("```toml\n")
    DOCUMENT.write_text(f"{head}{fence}{template()}```\n")


if __name__ == "__main__":
    write_document()
