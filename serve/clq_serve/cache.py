"""Answers kept for the same image, model and options: the least recently used go first."""

import asyncio
import hashlib
from collections import OrderedDict
from weakref import WeakValueDictionary

from clq_serve.detector import DetectOptions
from clq_serve.formats import BoxFormat, Encoded, Rendering

_ENTRY_BYTES = 500  # of an entry besides the answer itself


def etag_of(
    sha256: str,
    model: str,
    options: DetectOptions,
    rendering: Rendering,
    boxes: BoxFormat,
    image_id: int | str | None,
) -> str:
    """The ETag of an answer: equal for equal image, model and options, known before the answer.

    sha256  hex digest of the image file
    model   Bundle.fingerprint

    It is weak, because the id and the times in an answer are new each time.
    """
    classes = None if options.classes is None else sorted(options.classes)
    asked = (options.score, options.iou, options.max, classes)
    given = (rendering.format, rendering.media_type, boxes, image_id)
    key = repr((sha256, model, asked, given))
    return f'W/"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'


def names_etag(header: str | None, etag: str) -> bool:
    """Whether the header If-None-Match names `etag`.  `*` does not count: any answer is new."""
    return header is not None and etag in (item.strip() for item in header.split(","))


class AnswerCache:
    """Answers by ETag, at most `max_bytes` of them; 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: OrderedDict[str, Encoded] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def on(self) -> bool:
        return self._max_bytes > 0

    @property
    def bytes_held(self) -> int:
        return self._bytes

    def turn(self, etag: str) -> asyncio.Lock:
        """What the makers of one answer hold, so that the first makes it and the others find it."""
        turn = self._turns.get(etag)
        if turn is None:
            turn = self._turns[etag] = asyncio.Lock()
        return turn

    def get(self, etag: str) -> Encoded | None:
        """The answer with this ETag, which is now the most recently used."""
        answer = self._answers.get(etag)
        if answer is not None:
            self._answers.move_to_end(etag)
        return answer

    def put(self, etag: str, answer: Encoded) -> bool:
        """Keeps the answer, and drops the least recently used for it; False if it is too large."""
        size = len(answer.data) + _ENTRY_BYTES
        if size > self._max_bytes or etag in self._answers:
            return False
        self._answers[etag] = answer
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, oldest = self._answers.popitem(last=False)
            self._bytes -= len(oldest.data) + _ENTRY_BYTES
        return True
