"""Which bundles there are on disk: a folder of NAME/VERSION, one bundle, or the built-in model."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from clq_serve.bundle import MODEL_NAME, builtin_bundle_path
from clq_serve.errors import BundleError, SettingsError
from clq_serve.settings import Settings

log = logging.getLogger(__name__)

_NAME = re.compile(MODEL_NAME)
_VERSION = re.compile(r"[1-9]\d*")


class ModelKey(NamedTuple):
    """Name and version of a model; written NAME/VERSION."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


# Name, size and time of change of each file: differs when anything in the folder was written.
Signature = tuple[tuple[str, int, int], ...]


def find_bundles(settings: Settings) -> dict[ModelKey, Path]:
    """The bundle folders that the settings name; nothing inside them is looked at.

    Raises BundleError if the folder is not there, SettingsError if two sources are given.
    """
    if settings.models is not None:
        if settings.bundle is not None:
            raise SettingsError("bundle and models are both given; accepted: one of them")
        return _scan(settings.models)
    if settings.bundle is None:
        folder = builtin_bundle_path(settings.builtin)
    else:
        folder = settings.bundle.resolve()
    if not folder.is_dir():
        raise BundleError(f"{folder}: there is no such folder; a bundle is a folder NAME/VERSION/")
    if not (_NAME.fullmatch(folder.parent.name) and _VERSION.fullmatch(folder.name)):
        raise BundleError(f"{folder}: is not the folder of a bundle, which is NAME/VERSION/")
    return {ModelKey(folder.parent.name, int(folder.name)): folder}


def newest(found: Mapping[ModelKey, Path], name: str, count: int) -> list[ModelKey]:
    """The `count` newest versions of `name`, oldest first; fewer if there are fewer."""
    return sorted(key for key in found if key.name == name)[-count:]


def folder_signature(folder: Path) -> Signature:
    """What tells whether a file of the bundle was written since; () if the folder is not there."""
    try:
        items = sorted(folder.iterdir())
        stats = [(item.name, item.stat()) for item in items if not item.name.startswith(".")]
    except OSError:  # removed while we look
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _scan(root: Path) -> dict[ModelKey, Path]:
    if not root.is_dir():
        raise BundleError(f"{root}: there is no such folder; models is a folder of NAME/VERSION/")
    found: dict[ModelKey, Path] = {}
    for folder in sorted(root.resolve().glob("*/*")):
        name, version = folder.parent.name, folder.name
        if name.startswith(".") or version.startswith(".") or not folder.is_dir():
            continue
        if _NAME.fullmatch(name) and _VERSION.fullmatch(version):
            found[ModelKey(name, int(version))] = folder
        else:
            log.warning("%s: ignored; accepted: NAME/VERSION/, version a whole number", folder)
    return found
