"""Downloads packages with the clients of their registries and unpacks them; nothing of them runs.

An archive whose hash is not the one in packages.toml is refused.
"""

import base64
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from clq_train.errors import DataError
from clq_train.webui.sources import Package

log = logging.getLogger(__name__)
DONE = ".clq-complete"
AT_ONCE = 20  # packages for one call of npm, whose start takes longer than a download


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clq-webui"


def package_folder(cache: Path, package: Package) -> Path:
    """Where a package is unpacked."""
    return cache / package.registry / package.key.replace("/", "+")


def fetch(packages: Iterable[Package], cache: Path) -> None:
    """Unpacks into the cache what is not there yet.

    Raises DataError for a download that fails and for an archive with another hash.
    """
    missing = [p for p in packages if not _is_complete(p, cache)]
    npm = [p for p in missing if p.registry == "npm"]
    for start in range(0, len(npm), AT_ONCE):
        _fetch_npm(npm[start : start + AT_ONCE], cache)
    for package in missing:
        if package.registry == "debian":
            _fetch_debian(package, cache)


def integrity_of(archive: Path, algorithm: str) -> str:
    """Hash of a file in the form of npm: "sha512-" and base64."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"


def _is_complete(package: Package, cache: Path) -> bool:
    done = package_folder(cache, package) / DONE
    return done.is_file() and done.read_text() == _fingerprint(package)


def _fingerprint(package: Package) -> str:
    return " ".join((package.integrity, *package.keep))


def _fetch_npm(packages: list[Package], cache: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        specs = [f"{p.name}@{p.version}" for p in packages]
        log.info("npm pack %s", " ".join(specs))
        command = ["npm", "pack", "--ignore-scripts", "--json", *specs]
        answer = json.loads(_run(command, scratch))
        archives = {(a["name"], a["version"]): Path(scratch, a["filename"]) for a in answer}
        for package in packages:
            _unpack(package, archives[package.name, package.version], cache)


def _fetch_debian(package: Package, cache: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)  # apt-get downloads as a user of its own
        log.info("apt-get download %s=%s", package.name, package.version)
        _run(["apt-get", "download", "-q", f"{package.name}={package.version}"], scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _unpack(package, archive, cache)


def _run(command: list[str], folder: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed, which fetches the packages") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise DataError(f"{' '.join(command)}: {' / '.join(last)}")
    return done.stdout


def _unpack(package: Package, archive: Path, cache: Path) -> None:
    found = integrity_of(archive, package.integrity.partition("-")[0] or "sha512")
    if found != package.integrity:
        raise DataError(
            f"packages.toml: {package.key}: the archive has the integrity {found}, "
            f"expected {package.integrity!r}"
        )
    folder = package_folder(cache, package)
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    beside.mkdir(parents=True)
    if package.registry == "npm":
        with tarfile.open(archive) as tar:
            _extract(tar, beside, package.keep, strip=1)
    else:
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            _extract(tar, beside, package.keep, strip=0)
        if process.returncode:
            raise DataError(f"{' '.join(command)}: exit status {process.returncode}")
    (beside / DONE).write_text(_fingerprint(package))
    beside.rename(folder)


def _extract(tar: tarfile.TarFile, folder: Path, keep: tuple[str, ...], strip: int) -> None:
    """Regular files and links that stay inside the folder, without `strip` first parts of names."""
    for member in tar:
        parts = [part for part in member.name.split("/") if part not in ("", ".")][strip:]
        name = "/".join(parts)
        if not parts or (keep and not any(fnmatch.fnmatch(name, glob) for glob in keep)):
            continue
        if member.isfile() or member.issym():
            member.name = name
            try:
                tar.extract(member, folder, filter="data")
            except tarfile.FilterError as error:  # a link to the outside: of no use here
                log.debug("%s: %s", name, error)
