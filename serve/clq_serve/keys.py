"""The API keys of a service: a TOML file of their digests, read again when it changes.

    [camera-7]
    digest = "sha256:..."          # of the key; `clq-serve keys new` prints key and entry
    scopes = ["infer"]             # infer, metrics, admin
    requests_per_s = 10            # optional, and so are the next two
    burst = 20
    concurrent = 4

The digest is a plain SHA-256, without salt or stretching: those make it dear to guess a password,
and a key is 256 random bits, which nobody guesses.  A slow digest would only help whoever wants to
keep the service busy with wrong keys.
"""

import hashlib
import hmac
import logging
import secrets
import stat
import time
import tomllib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clq_serve.errors import SettingsError
from clq_serve.limits import KeyLimits, Limiter

log = logging.getLogger(__name__)

PREFIX = "clq_"  # so that a key which lies about is known for what it is
LOOK_S = 1.0  # between two looks whether the file has changed


class Scope(StrEnum):
    """What a key is good for; `admin` includes `metrics`."""

    INFER = "infer"
    METRICS = "metrics"
    ADMIN = "admin"


class KeyEntry(BaseModel):
    """One key, as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    burst: Annotated[int, Field(ge=1)] | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None

    @property
    def limits(self) -> KeyLimits:
        """How much the key may ask for; without `burst` one second's worth, and at least one."""
        return KeyLimits(
            self.requests_per_s,
            self.burst or max(1, round(self.requests_per_s or 1)),
            self.concurrent,
        )


Entries = dict[str, KeyEntry]
_ENTRIES: TypeAdapter[Entries] = TypeAdapter(Entries)


class Keys:
    """The keys of a file, always its last good content."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError if the file is missing or wrong."""
        self._path = path
        self._seen = _identity(path)
        self._entries = read_keys(path)
        self._limiters: dict[str, Limiter] = {}
        self._next_look_s = time.monotonic() + LOOK_S

    def find(self, key: str) -> tuple[str, KeyEntry] | None:
        """The name and entry of a key; None if it is none of ours."""
        self._read_again_if_changed()
        digest = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
        found = None
        for name, entry in self._entries.items():  # all of them: as long for a right as a wrong one
            if hmac.compare_digest(entry.digest, digest):
                found = name, entry
        return found

    def limiter(self, name: str, entry: KeyEntry) -> Limiter:
        """What counts the requests of that key; a new one when its limits have changed."""
        limiter = self._limiters.get(name)
        if limiter is None or limiter.limits != entry.limits:
            limiter = self._limiters[name] = Limiter(entry.limits)
        return limiter

    def _read_again_if_changed(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_S
        identity = _identity(self._path)
        if identity == self._seen:
            return
        self._seen = identity  # a wrong file is complained about once
        try:
            self._entries = read_keys(self._path)
        except SettingsError as err:
            log.error("%s; the %d keys from before still count", err, len(self._entries))
            return
        self._limiters = {n: k for n, k in self._limiters.items() if n in self._entries}
        log.info("%s: read again, %d keys", self._path, len(self._entries))


def read_keys(path: Path) -> Entries:
    """The entries of a key file.  Raises SettingsError; the message names file, key and member."""
    try:
        mode = path.stat().st_mode
        tree = tomllib.loads(path.read_text("utf-8"))
    except OSError as err:
        raise SettingsError(f"{path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path}: not TOML: {err}") from err
    try:
        entries = _ENTRIES.validate_python(tree)
    except ValidationError as err:
        wrong = err.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise SettingsError(f"{path}: {place}: {wrong['msg']}") from None
    owners: dict[str, str] = {}
    for name, entry in entries.items():
        other = owners.setdefault(entry.digest, name)
        if other != name:
            raise SettingsError(f"{path}: {name}: has the same digest as {other}")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("%s: others than its owner may read or write it; chmod 600", path)
    return entries


def new_key(name: str, scopes: frozenset[Scope]) -> tuple[str, str]:
    """A new key and the entry for the file; the key is nowhere else.

    Raises SettingsError if the name cannot be a bare key of TOML.
    """
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise SettingsError(f"{name!r} is not a name; accepted: letters, digits, - and _")
    key = PREFIX + secrets.token_urlsafe(32)
    listed = ", ".join(f'"{scope}"' for scope in sorted(scopes))
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f'[{name}]\ndigest = "sha256:{digest}"\nscopes = [{listed}]\n'


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes of these names.  Raises SettingsError."""
    known = [str(scope) for scope in Scope]
    for name in names:
        if name not in known:
            raise SettingsError(f"there is no scope {name!r}; accepted: {', '.join(known)}")
    return frozenset(Scope(name) for name in names)


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when the file is written or replaced; () = it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
