"""The parts of a multipart/form-data body, in memory: nothing an uploader sends touches a disk."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from clq_serve.errors import BadRequest


@dataclass(slots=True)
class Part:
    """One field of a form; `file_name`: as the client put it, None if the part is no file."""

    name: str = ""
    file_name: str | None = None
    data: bytearray = field(default_factory=bytearray)


async def read_form(
    content_type: str, body: AsyncGenerator[bytes, None], max_parts: int
) -> list[Part]:
    """The parts of a form, in order.

    content_type  the whole header, with its boundary
    body          the chunks of the body; whoever makes them limits their size
    max_parts     how many parts are accepted

    Raises BadRequest with code bad_form if the form is malformed, ends early or has too many parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _bad("the Content-Type header has no boundary")
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.part_begins,
                "on_part_data": collector.part_goes_on,
                "on_header_field": collector.header_name_goes_on,
                "on_header_value": collector.header_value_goes_on,
                "on_header_end": collector.header_ends,
                "on_end": collector.form_ends,
            },
        )
        async for chunk in body:
            parser.write(chunk)
    except FormParserError as err:
        raise _bad(str(err)) from err
    if not collector.complete:
        raise _bad("it ends before its last boundary")
    return collector.parts


def _bad(what: str) -> BadRequest:
    return BadRequest(f"the form is malformed: {what}", code="bad_form")


class _Collector:
    """Keeps what the parser calls out; its methods are the parser's events."""

    def __init__(self, max_parts: int) -> None:
        self._max_parts = max_parts
        self.parts: list[Part] = []
        self.complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()

    def part_begins(self) -> None:
        if len(self.parts) == self._max_parts:
            raise _bad(f"it has more than {self._max_parts} parts")
        self.parts.append(Part())

    def part_goes_on(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def header_name_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def header_value_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def header_ends(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._header_value))[1]
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self.parts[-1].file_name = options[b"filename"].decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def form_ends(self) -> None:
        self.complete = True
