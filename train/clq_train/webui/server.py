"""The pages on 127.0.0.1: http://FAMILY.localhost:PORT/PATH, with nothing from outside.

/__lib/PACKAGE/PATH   a file of an unpacked package
/__font/FAMILY.css    @font-face rules of a font family of fontsource
/__photo/KEY          a photo; the split decides which part of the photos is used
/__cdn/HOST/PATH      what pages load from elsewhere: absolute addresses are rewritten to this
"""

import contextlib
import functools
import hashlib
import io
import mimetypes
import re
import threading
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from clq_train.webui.fetch import package_folder
from clq_train.webui.sources import DATA, SPLITS, Family, Package, all_packages

HTML = "text/html; charset=utf-8"
TYPES = {
    ".woff2": "font/woff2",
    ".woff": "font/woff",
    ".ttf": "font/ttf",
    ".mjs": "text/javascript",
}
# Names that every package has: the same name says nothing about the same content.
COMMON_NAMES = {
    "style.css",
    "style.min.css",
    "main.js",
    "main.css",
    "index.js",
    "all.js",
    "app.js",
    "app.css",
}
PHOTO_LONGEST_PX, PHOTO_SHORTEST_PX = 900, 120
LINK = re.compile(
    r"""((?:src|href|data-src|poster|content)\s*=\s*["']?|url\(\s*["']?|@import\s+["'])"""
    r"""((?:https?:)?//[^"'\s>)]+)""",
    re.IGNORECASE,
)
STYLE_URL = re.compile(rb"""url\(\s*(["']?)(?!data:|https?:|/|#)""")
PICTURE_NAME = re.compile(
    r"\.(png|jpe?g|gif|webp)|placehold|unsplash|picsum|lorempixel|dummyimage|gravatar|images?\b",
    re.I,
)
Compose = Callable[[str], str | None]  # path and query of a page -> HTML, None where there is none


class Library:
    """Files of unpacked packages, by package and by base name."""

    def __init__(self, cache: Path, packages: Iterable[Package]) -> None:
        self.folders = {p.key: package_folder(cache, p) for p in packages}
        self._by_name: dict[str, list[tuple[str, Path]]] = {}
        for package in packages:
            if package.vendor:
                self._index(package, self.folders[package.key])
        tree = tomllib.loads((DATA / "cdn.toml").read_text())
        self._cdn = [(re.compile(r["match"]), r["package"], r["file"]) for r in tree["rule"]]

    def _index(self, package: Package, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts[:-1]
            if path.suffix not in (".css", ".js", ".woff", ".woff2", ".ttf"):
                continue
            if not {"src", "test", "tests", "examples"} & set(inside):
                self._by_name.setdefault(path.name.lower(), []).append((package.name, path))

    def file(self, address: str) -> Path | None:
        """The file of "PACKAGE/PATH", where a scoped package has one more slash."""
        parts = address.split("/")
        count = 2 if address.startswith("@") else 1
        folder = self.folders.get("/".join(parts[:count]))
        return _inside(folder, "/".join(parts[count:])) if folder else None

    def from_cdn(self, address: str) -> Path | None:
        for pattern, package, name in self._cdn:
            found = pattern.search(address)
            if found and package in self.folders:
                return _inside(self.folders[package], found.expand(name))
        return None

    def stand_in(self, path: str, preferred: tuple[str, ...]) -> Path | None:
        """A vendor file of the same base name for a script or style that a page misses."""
        name = path.rpartition("/")[2].lower()
        found = self._by_name.get(name) or self._by_name.get(name.replace(".full", "")) or []
        for key in preferred:
            for _, file in found:
                if file.is_relative_to(self.folders[key]):
                    return file
        squeezed = re.sub("[-_]", "", path.lower())
        for package, file in found:
            if re.sub(r"[-_@]|\.js$", "", package.lower()) in squeezed:
                return file
        return found[0][1] if found and name not in COMMON_NAMES else None

    def font_css(self, family: str) -> bytes | None:
        """The rules of a font family, regular and bold, from the fontsource package of its name."""
        prefix = f"@fontsource/{family.strip().lower().replace(' ', '-')}@"
        for key, folder in self.folders.items():
            if key.startswith(prefix):
                sheets = [folder / f"{weight}.css" for weight in (400, 700)]
                css = b"\n".join(s.read_bytes() for s in sheets if s.is_file())
                return css.replace(b"url(./", f"url(/__lib/{key}/".encode())
        return None


class Photos:
    """Photos out of the packages of each split; another split never shows them."""

    def __init__(self, library: Library, families: Iterable[Family]) -> None:
        self._library = library
        self._keys = {
            split: sorted({k for f in families if f.split == split for k in f.packages})
            for split in SPLITS
        }

    @functools.cache  # noqa: B019
    def _of(self, split: str) -> list[Path]:
        folders = [
            self._library.folders[key] for key in self._keys[split] if key in self._library.folders
        ]
        found = [path for f in folders for path in sorted(f.rglob("*.jp*g"))]
        found = [path for path in found if 8_000 < path.stat().st_size < 3_000_000]
        order = sorted(
            found, key=lambda p: hashlib.sha256(str(p.relative_to(p.parents[3])).encode()).digest()
        )
        return order[:200]

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def get(self, split: str, key: str) -> bytes:
        """A JPEG, the same one for the same key; a plain gradient where the split has no photos."""
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        choices = self._of(split)
        image = _gradient(number)
        if choices:
            with (
                contextlib.suppress(OSError),  # a file that is no picture
                Image.open(choices[number % len(choices)]) as file,
            ):
                image = file.convert("RGB")
        if min(image.size) < PHOTO_SHORTEST_PX:
            image = _gradient(number)
        image.thumbnail((PHOTO_LONGEST_PX, PHOTO_LONGEST_PX))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85)
        return out.getvalue()


def _gradient(number: int) -> Image.Image:
    """Two colours that run into each other: stands for a photo."""
    ends = [
        ((number >> s) & 255, (number >> (s + 8)) & 255, (number >> (s + 4)) & 255) for s in (0, 12)
    ]
    mask = Image.linear_gradient("L").resize((640, 420)).rotate(number % 90, expand=False)
    return Image.composite(*(Image.new("RGB", (640, 420), c) for c in ends), mask)


class PageServer:
    """Serves families until it is closed. Use as a context manager."""

    def __init__(
        self,
        families: list[Family],
        cache: Path,
        packages: list[Package],
        composers: dict[str, Compose],
    ) -> None:
        self.families = {f.name: f for f in families}
        self.library = Library(cache, packages)
        self.photos = Photos(self.library, families)
        self.composers = composers
        handler = functools.partial(_Handler, self)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.port: int = self._http.server_port

    def __enter__(self) -> "PageServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def root(self, family: Family) -> Path:
        return self.library.folders[family.packages[0]] / family.folder

    def answer(self, host: str, address: str) -> tuple[str, bytes] | None:
        """Content type and body for an address of a family, or None."""
        family = self.families.get(host.partition(".")[0])
        path = urllib.parse.unquote(address.partition("?")[0])
        special = path[1:].partition("/")
        split = family.split if family else SPLITS[0]
        if special[0] == "__lib":
            return _read(self.library.file(special[2]))
        if special[0] == "__font":
            css = self.library.font_css(special[2].removesuffix(".css"))
            return ("text/css", css) if css else None
        if special[0] == "__photo":
            return "image/jpeg", self.photos.get(split, special[2])
        if special[0] == "__cdn":
            return self._cdn(split, urllib.parse.unquote(address.removeprefix("/__cdn/")))
        if family is None:
            return None
        if family.name in self.composers:
            page = self.composers[family.name](address.lstrip("/"))
            if page is not None:
                return HTML, _rewritten(page.encode(), html=True)
        given = (family.options or {}).get("files", {})
        if path[1:] in given:
            return "text/javascript", given[path[1:]].encode()
        if not family.packages:
            return None
        file = _inside(self.root(family), path.lstrip("/"))
        if file is not None and file.is_dir():
            file = file / "index.html"
        if file is not None and file.is_file():
            return _read(file, rewrite_urls=False)
        if re.search(r"\.(css|js|woff2?|ttf)$", path, re.I):
            return _read(self.library.stand_in(path, family.vendor))
        if re.search(r"\.(png|jpe?g|webp|gif)$", path, re.I):
            return "image/jpeg", self.photos.get(split, path)
        return None

    def _cdn(self, split: str, address: str) -> tuple[str, bytes] | None:
        file = _read(self.library.from_cdn(address))
        if file is not None and "fonts.googleapis" not in address:
            return file
        if "fonts.googleapis" in address:
            names = [n for f in re.findall(r"family=([^&]+)", address) for n in f.split("|")]
            fonts = [self.library.font_css(n.partition(":")[0].replace("+", " ")) for n in names]
            icons = [file[1]] if file else []
            return "text/css", b"\n".join(icons + [css for css in fonts if css])
        if re.search(r"\.(css|js)\b", address):
            return _read(self.library.stand_in(address, ()))
        return (
            ("image/jpeg", self.photos.get(split, address))
            if PICTURE_NAME.search(address)
            else None
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, pages: PageServer, *args: object) -> None:
        self._pages = pages
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        found = self._pages.answer(self.headers.get("Host", ""), self.path)
        kind, body = found or ("text/plain", b"")
        try:
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "max-age=600")
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the page was left before it was complete
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _inside(folder: Path, name: str) -> Path | None:
    """A path below the folder; None for one that leads out of it."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None


@functools.lru_cache(maxsize=512)
def _read(file: Path | None, rewrite_urls: bool = True) -> tuple[str, bytes] | None:
    """Type and content; rewrite_urls: a style sheet is served at another place than its own."""
    if file is None or not file.is_file():
        return None
    kind = (
        TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    )
    body = file.read_bytes()
    if file.suffix in (".html", ".htm", ".xhtml"):
        kind, body = HTML, _rewritten(body, html=True)
    elif file.suffix == ".css":
        body = _rewritten(body, html=False)
        if rewrite_urls:
            base = _library_url(file)
            body = STYLE_URL.sub(lambda m: b"url(" + m.group(1) + base, body)
    return kind, body


def _library_url(file: Path) -> bytes:
    """Address of the folder of a library's file."""
    for package in all_packages().values():
        name = package.key.replace("/", "+")
        if name in file.parts:
            inside = file.parts[file.parts.index(name) + 1 : -1]
            return ("/".join(("/__lib", package.key, *inside)) + "/").encode()
    return b""


def _rewritten(body: bytes, html: bool) -> bytes:
    """UTF-8, with addresses outside that are loaded (not links) replaced by /__cdn/."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        declared = re.search(rb"""charset=["']?([\w-]+)""", body[:3000])
        try:
            text = body.decode(declared.group(1).decode() if declared else "latin-1", "replace")
        except LookupError:
            text = body.decode("latin-1")
        text = re.sub(r"""charset=["']?[\w-]+""", "charset=utf-8", text, count=1)

    def local(found: re.Match[str]) -> str:
        before, address = found.groups()
        if re.match(r"(https?:)?//[\w.-]*localhost", address):
            return found.group(0)
        is_link = before.lower().startswith(("href", "content"))
        if is_link and not re.search(r"\.(css|js|ico|woff2?)|googleapis", address):
            return found.group(0)
        return before + "/__cdn/" + re.sub(r"^(https?:)?//", "", address)

    return LINK.sub(local, text).encode()
