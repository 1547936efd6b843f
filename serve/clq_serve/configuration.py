"""Where the settings come from: defaults, then a TOML file, then CLQ_SERVE_* variables, then flags.

Whatever is unknown or not accepted is refused; the message names the place it was given.
"""

import difflib
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from clq_serve.errors import SettingsError
from clq_serve.settings import PREFIX, Settings

CONFIG_VARIABLE = f"{PREFIX}CONFIG"  # names the file; not a setting itself
_PASSWORD = re.compile(r"//[^/@\s]+@")  # the user part of a URL
ALWAYS_SHOWN = ("host", "port", "threads")


def read_settings(
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    assignments: Iterable[str] = (),
    config: Path | None = None,
) -> Settings:
    """The settings of a process.

    environ      of its entries those that begin with CLQ_SERVE_
    flags        field name -> value; None = not given
    assignments  "name=value", which go before all others
    config       a TOML file of them; None = the one that CLQ_SERVE_CONFIG names, if any

    Raises SettingsError if a name is unknown or a value is not accepted.
    """
    given: dict[str, object] = {}  # field -> value
    places: dict[str, str] = {}  # field -> where that value was given
    file = config or environ.get(CONFIG_VARIABLE)
    for name, value, place in (
        *(_from_file(Path(file)) if file else ()),
        *_from_variables(environ),
        *((name, value, _flag(name)) for name, value in flags.items() if value is not None),
        *_from_assignments(assignments),
    ):
        if name not in Settings.model_fields:
            raise SettingsError(f"{place}: there is no such setting{_nearest(name, place)}")
        given[name] = value
        places[name] = place
    try:
        return Settings.model_validate(given)
    except ValidationError as err:
        raise SettingsError("; ".join(_complaints(err, places))) from None


def shown(settings: Settings) -> str:
    """One line: the settings that differ from their defaults and the most important ones.

    Secrets are masked.
    """
    defaults = Settings()
    chosen = [
        (name, value)
        for name, value in settings
        if name in ALWAYS_SHOWN or value != getattr(defaults, name)
    ]
    line = " ".join(f"{name}={value}" for name, value in chosen)
    return _PASSWORD.sub("//***@", line)


def template() -> str:
    """Every setting with its meaning and default, as the commented-out TOML file that sets it."""
    blocks = []
    for name, field in Settings.model_fields.items():
        accepted = f"  One of: {', '.join(_literals(field))}." if _literals(field) else ""
        meaning = " ".join((field.description or "").split()) + accepted
        comment = textwrap.fill(meaning, 98, initial_indent="# ", subsequent_indent="# ")
        blocks.append(f"{comment}\n#{name} = {_default(field)}\n")
    return "\n".join(blocks)


def _from_file(path: Path) -> list[tuple[str, object, str]]:
    try:
        entries = tomllib.loads(path.read_text("utf-8"))
    except OSError as err:
        raise SettingsError(f"{path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path}: not TOML: {err}") from err
    return [(name, value, f"{path}: {name}") for name, value in entries.items()]


def _from_variables(environ: Mapping[str, str]) -> list[tuple[str, object, str]]:
    return [
        (key.removeprefix(PREFIX).lower(), value, key)
        for key, value in sorted(environ.items())
        if key.startswith(PREFIX) and key != CONFIG_VARIABLE
    ]


def _from_assignments(assignments: Iterable[str]) -> list[tuple[str, object, str]]:
    entries: list[tuple[str, object, str]] = []
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}: accepted: NAME=VALUE, e.g. --set max_pending=64")
        entries.append((name, value, f"--set {name}"))
    return entries


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _nearest(name: str, place: str) -> str:
    """The name that was probably meant, as it would be written in the same place."""
    names = list(Settings.model_fields)
    found = difflib.get_close_matches(name, names, n=1)
    if not found:
        return "; `clq-serve settings` lists them"
    wanted = PREFIX + found[0].upper() if place.startswith(PREFIX) else found[0]
    return f"; did you mean {wanted}?  `clq-serve settings` lists them"


def _complaints(err: ValidationError, places: Mapping[str, str]) -> Iterable[str]:
    for wrong in err.errors():
        name = str(wrong["loc"][0]) if wrong["loc"] else ""
        if not name:  # a rule over several settings names them itself
            yield wrong["msg"].removeprefix("Value error, ")
            continue
        field = Settings.model_fields[name]
        value = "(masked)" if SecretStr in _types(field) else repr(wrong["input"])
        hint = ""
        if isinstance(wrong["input"], str) and "://" in wrong["input"] and name == "port":
            hint = (
                " (Kubernetes sets this variable for a Service named clq-serve: give the Service "
                "another name, or set enableServiceLinks: false)"
            )
        yield f"{places.get(name, name)}: {value}: {wrong['msg']}{hint}"


def _types(field: FieldInfo) -> tuple[object, ...]:
    return (field.annotation, *get_args(field.annotation))


def _literals(field: FieldInfo) -> list[str]:
    """The values of a Literal, as text; none for other types."""
    found = [a for a in _types(field) if get_origin(a) is Literal]
    return [str(value) for annotation in found for value in get_args(annotation)]


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None or field.default is None:
        return "..."
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:_}" if isinstance(value, int) and value >= 10_000 else str(value)
    if isinstance(value, tuple | list | frozenset):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return f'"{value}"'
