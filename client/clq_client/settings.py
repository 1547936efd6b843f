"""What a client is made with: the service, the key, the model, the limits; all checked."""

import os
import re
import ssl
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, urlsplit

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "CLQ_URL"
KEY_VARIABLE = "CLQ_API_KEY"

Priority = Literal["interactive", "bulk"]
PRIORITIES = ("interactive", "bulk")


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The settings of one client, in their range; the key is in no repr."""

    url: str
    api_key: str | None = field(repr=False)
    model: str | None
    version: int | None
    priority: Priority | None
    deadline_s: float
    retries: int
    proxy: str | None = field(repr=False)  # may hold a password
    ca_file: str | None

    @classmethod
    def checked(
        cls,
        url: str | None,
        api_key: str | None,
        model: str | None,
        version: int | None,
        priority: Priority | None,
        deadline_s: float,
        retries: int,
        proxy: str | None,
        ca_file: str | None,
    ) -> "ClientSettings":
        """The settings; what is None comes from the environment or is the service's default.

        Raises ValueError, which names the setting and what is accepted; OSError for a CA file
        that cannot be read.
        """
        if not deadline_s > 0:
            raise ValueError(f"deadline_s: {deadline_s!r} is not a number of seconds > 0")
        if retries < 0:
            raise ValueError(f"retries: {retries!r} is not a whole number >= 0")
        if priority is not None and priority not in PRIORITIES:
            raise ValueError(f"priority: {priority!r}; accepted: {', '.join(PRIORITIES)}")
        if model == "":
            raise ValueError("model: '' is not a name; accepted: None, or a name of /v1/models")
        if version is not None and (model is None or version < 1):
            raise ValueError(f"version: {version!r} needs a model, and is a whole number >= 1")
        settings = cls(
            url=base_url(url),
            api_key=_key(api_key),
            model=model,
            version=version,
            priority=priority,
            deadline_s=deadline_s,
            retries=retries,
            proxy=_proxy(proxy),
            ca_file=ca_file,
        )
        if ca_file is not None:
            settings.tls()
        return settings

    @property
    def model_path(self) -> str:
        """Where the chosen model is, below the base URL; the default model's for none."""
        if self.model is None:
            return "/v1"
        name = f"/v1/models/{quote(self.model, safe='')}"
        return name if self.version is None else f"{name}/versions/{self.version}"

    def tls(self) -> ssl.SSLContext:
        """Trusts the certificates of ca_file and no others."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise ValueError(f"ca_file: {self.ca_file}: no certificates in it") from error


def base_url(url: str | None) -> str:
    """The URL given, else the one in CLQ_URL, else http://127.0.0.1:8000; no slash at its end.

    Raises ValueError for anything that is not http(s)://host...
    """
    source, value = "url", url
    if value is None:
        source, value = URL_VARIABLE, os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        parts = urlsplit(value)  # stricter about brackets; httpx about all else
        fine = parts.scheme in ("http", "https") and httpx.URL(value).host != ""
        fine = fine and not parts.query and not parts.fragment
    except (ValueError, httpx.InvalidURL):
        fine = False
    if not fine:
        raise ValueError(
            f"{source}: {value!r} is not a base URL; accepted: http(s)://host[:port][/prefix]"
        )
    return value.rstrip("/")


def _key(api_key: str | None) -> str | None:
    """The key given, else the one in CLQ_API_KEY.  A refused key is not shown."""
    source, value = "api_key", api_key
    if value is None:
        source, value = KEY_VARIABLE, os.environ.get(KEY_VARIABLE) or None
    if value is not None and not re.fullmatch(r"[!-~]+", value):
        raise ValueError(f"{source}: accepted: ASCII letters, digits and signs, without spaces")
    return value


def _proxy(proxy: str | None) -> str | None:
    if proxy is not None:
        try:
            fine = httpx.URL(proxy).scheme in ("http", "https") and httpx.URL(proxy).host != ""
        except httpx.InvalidURL:
            fine = False
        if not fine:
            raise ValueError("proxy: accepted: http(s)://[user:password@]host[:port]")
    return proxy
