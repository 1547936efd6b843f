"""The form of the log: lines of text for people, or one JSON object a line for machines."""

import json
import logging
import time
from typing import Literal

_QUIET = {
    "uvicorn": logging.ERROR,  # it warns of what strangers send
    "python_multipart": logging.ERROR,  # so does this
}


def set_up_logging(level: str, form: Literal["text", "json"]) -> None:
    """Sends the log of the whole process to stderr, in the form that is wanted."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)


class TextLines(logging.Formatter):
    """`2026-11-24 18:00:00,123 INFO clq_serve.models message`; fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        stages = fields.pop("stages_ms", None)
        if isinstance(stages, dict):
            fields |= stages
        pairs = [f"{name}={_word(value)}" for name, value in fields.items() if value is not None]
        return " ".join([super().formatMessage(record), *pairs])


class JsonLines(logging.Formatter):
    """One object: time (UTC, RFC 3339), level, logger, message, the fields, exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"), default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What was logged with extra={"fields": ...}."""
    return dict(getattr(record, "fields", {}))


def _word(value: object) -> str:
    """The value as one word: what a stranger sent cannot look like another field or line."""
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)
