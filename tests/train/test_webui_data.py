"""The data set around the browser: jobs, pages, server, labels, files, checks."""

import io
import json
import tarfile
import tomllib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clq_train.cli import app
from clq_train.coco import load_split
from clq_train.config import DataConfig
from clq_train.errors import DataError
from clq_train.webui import coco, fetch, sampler, sources
from clq_train.webui.build import write_whole
from clq_train.webui.check import check_dataset, check_image
from clq_train.webui.compose.layouts import LAYOUTS, Page, body_of
from clq_train.webui.compose.own import page_html
from clq_train.webui.compose.parts import libraries
from clq_train.webui.compose.words import words_for
from clq_train.webui.fetch import integrity_of, package_folder
from clq_train.webui.fonts import FONT_PACKAGES
from clq_train.webui.review import write_sheets
from clq_train.webui.server import PageServer

playwright = pytest.importorskip("playwright.sync_api", reason="the extra clq-train[webui]")

from clq_train.webui.browser import Finding  # noqa: E402
from clq_train.webui.labels import CLASSES, without_repeats  # noqa: E402


def test_families_name_known_packages_and_keep_the_first_data_sets_splits():
    families = sources.all_families()
    kept = {"spectre": "test", "rustbook": "test", "sqlitedoc": "test", "sneat": "test"}
    kept |= {
        "fomantic": "test",
        "gentelella4": "val",
        "nhsuk": "val",
        "beer": "val",
        "pgdoc": "val",
    }
    assert {name: families[name].split for name in kept if name in families} == {
        name: split for name, split in kept.items() if name in families
    }
    for family in families.values():
        assert family.globs or family.composer or family.app, family.name
        assert family.weight > 0
        assert family.licence


def test_every_package_has_a_hash_a_licence_and_an_exact_version():
    for package in sources.all_packages().values():
        assert package.integrity.startswith(("sha512-", "sha256-")), package.key
        assert package.licence not in ("", "?"), package.key
        assert package.registry == "debian" or package.key == f"{package.name}@{package.version}"


def some_families():
    make = sources.Family
    return [
        (make("a", "train", "docs", 1.0, "MIT", globs=("*",)), [f"{n}.html" for n in range(9)]),
        (make("b", "train", "docs", 3.0, "MIT", globs=("*",)), ["only.html"]),
        (make("c", "test", "docs", 1.0, "MIT", globs=("*",)), ["x.html", "y.html"]),
    ]


def test_the_same_seed_plans_the_same_jobs_and_another_seed_others():
    jobs = sampler.plan(some_families(), 200, 7)
    assert jobs == sampler.plan(some_families(), 200, 7)
    assert jobs != sampler.plan(some_families(), 200, 8)
    assert len({job.name for job in jobs}) == len(jobs)


def test_all_pictures_have_a_size_that_was_asked_for():
    jobs = sampler.plan(some_families(), 200, 7, [(1920, 1080)])
    sizes = {(view.width, view.height) for job in jobs for view in job.views}
    assert (sizes, {job.scale for job in jobs}) == ({(1920, 1080)}, {1})


@pytest.mark.parametrize("size", ["1920", "1920x", "0x1080", "1920x-1", "wide"])
def test_a_size_that_is_none_is_told_with_what_is_accepted(size, tmp_path):
    result = CliRunner().invoke(app, ["webui", "build", "--out", str(tmp_path), "--screen", size])
    assert str(result.exception).startswith(f"--screen {size!r}: expected WIDTHxHEIGHT in px")


def test_families_share_the_images_of_their_split_by_weight():
    jobs = sampler.plan(some_families(), 2000, 7)
    count = {name: sum(j.family == name for j in jobs) for name in "abc"}
    assert count["b"] == pytest.approx(3 * count["a"], rel=0.05)
    assert sum(count.values()) == pytest.approx(2000 / sampler.VIEWS_PER_JOB, rel=0.05)
    shares = sampler.SPLIT_SHARE
    wanted = shares["test"] / (shares["test"] + shares["train"])
    assert count["c"] / len(jobs) == pytest.approx(wanted, rel=0.05)


def test_a_page_of_our_own_is_the_same_each_time_it_is_written():
    assert page_html("bulma", 3) == page_html("bulma", 3)
    assert page_html("bulma", 3) != page_html("bulma", 4)


@pytest.mark.parametrize("name", sorted(libraries()))
def test_every_library_fills_every_part_of_every_layout(name):
    import random

    for number, layout in enumerate(LAYOUTS):
        rng = random.Random(f"{name} {number}")
        html = body_of(Page(libraries()[name], words_for(rng), rng), layout)
        assert "$text" not in html
        assert "$label" not in html
        assert len(html) > 300


@pytest.fixture
def cache(tmp_path):
    """A cache with one unpacked package, of a family "site" whose page loads from outside."""
    package = sources.Package("site@1.0.0", "npm", "site", "1.0.0", "sha512-x", "MIT")
    folder = package_folder(tmp_path, package)
    (folder / "pages").mkdir(parents=True)
    (folder / "pages/index.html").write_text(
        '<script src="https://cdn.example/a.js"></script><a href="https://example.org/">out</a>'
        '<img src="//img.example/photo.jpg">'
    )
    (tmp_path / "secret").write_text("secret")
    return tmp_path, package


def test_the_server_keeps_pages_from_the_network_and_files_outside_from_pages(cache):
    root, package = cache
    family = sources.Family(
        "site", "train", "docs", 1, "MIT", ("site@1.0.0",), "pages", ("*.html",)
    )
    with PageServer([family], root, [package], {}) as server:
        kind, body = server.answer("site.localhost:1", "/index.html?x=1")
        assert kind == "text/html; charset=utf-8"
        assert b'src="/__cdn/cdn.example/a.js"' in body
        assert b'href="https://example.org/"' in body  # a link loads nothing
        kind, body = server.answer("site.localhost:1", "/__cdn/img.example/photo.jpg")
        assert Image.open(io.BytesIO(body)).format == "JPEG"
        for address in (
            "/../../../secret",
            "/__lib/site@1.0.0/../../secret",
            "/__lib/no@1/x",
            "/gone",
        ):
            assert server.answer("site.localhost:1", address) is None
        assert server.answer("other.localhost:1", "/index.html") is None


def archive(path, name, text):
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))


def test_an_archive_with_another_hash_is_refused_and_nothing_is_unpacked(tmp_path):
    archive(tmp_path / "p.tgz", "package/index.html", b"<p>hello")
    package = sources.Package("p@1", "npm", "p", "1", "sha512-wrong", "MIT")
    with pytest.raises(DataError, match=r"p@1: the archive has the integrity sha512-\S+, expected"):
        fetch._unpack(package, tmp_path / "p.tgz", tmp_path)
    assert not package_folder(tmp_path, package).exists()


def test_an_archive_is_unpacked_without_what_leads_outside(tmp_path):
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as tar:
        for name in ("package/docs/a.html", "package/other/b.html"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        link = tarfile.TarInfo("package/docs/passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    right = integrity_of(tmp_path / "p.tgz", "sha512")
    package = sources.Package("p@1", "npm", "p", "1", right, "MIT", keep=("docs/*",))
    fetch._unpack(package, tmp_path / "p.tgz", tmp_path)
    folder = package_folder(tmp_path, package)
    assert sorted(p.name for p in folder.rglob("*")) == [fetch.DONE, "a.html", "docs"]


def test_of_two_findings_that_say_the_same_the_outer_one_is_kept():
    outer, inner = Finding("button", (0, 0, 100, 40)), Finding("button", (2, 2, 98, 38))
    text = Finding("text", (10, 5, 90, 35))
    apart = Finding("icon", (200, 0, 220, 20))
    assert without_repeats([inner, text, outer, apart]) == [outer, apart]
    label = Finding("text", (1, 1, 99, 39))
    assert without_repeats([Finding("badge", (0, 0, 100, 40)), label])[0].fine == "badge"
    assert len(without_repeats([Finding("badge", (0, 0, 100, 40)), label])) == 1


@pytest.fixture
def built(tmp_path):
    """A folder as a build leaves it, with one picture and one refused view."""
    for folder in ("images", "records"):
        (tmp_path / folder).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images/bulma-0000a.webp")
    family = next(f for f in sources.all_families().values() if f.name == "bulma")
    job = sampler.plan([(family, ["bulma/0.html"])], 2, 7)[0]
    record = {
        "job": {"family": "bulma", "page": job.page, "seed": job.seed, "scale": 1, "dark": False},
        "views": [
            {
                "file": "bulma-0000a.webp", "width": 80, "height": 60, "browser": "Chromium 1",
                "labels": [["nav_item", 1, 2, 30, 12], ["progress", 5, 20, 60, 30]],
            },
            {"browser": "Chromium 1", "refused": "it kept moving"},
        ],
    }  # fmt: skip
    write_whole(tmp_path / "records/bulma-0000.json", json.dumps(record).encode())
    assert coco.write(tmp_path, [family], 7) == {"train": 1, "val": 0, "test": 0}
    return tmp_path


def test_what_a_build_leaves_is_read_by_training(built):
    split = {"annotations": "train.json", "images": "images"}
    data = DataConfig(root=built, splits={"train": split}, classes=list(CLASSES))
    (record,) = load_split(data, "train")
    assert [CLASSES[i] for i in record.labels] == ["link", "slider"]
    assert record.boxes.tolist() == [[1, 2, 30, 12], [5, 20, 60, 30]]
    tree = json.loads((built / "train.json").read_bytes())
    assert [a["fine"] for a in tree["annotations"]] == ["nav_item", "progress"]
    (image,) = tree["images"]
    assert image["family"] == "bulma"
    assert "Jeremy Thomas" in image["attribution"]
    assert tree["licenses"][image["license"] - 1]["name"] == "MIT"
    assert "bulma" in (built / "SOURCES.md").read_text()


def test_a_contact_sheet_shows_the_pictures_of_a_family(built, tmp_path):
    (path,) = write_sheets(built, tmp_path / "sheets", None, 3, 2, 120)
    assert path.name == "bulma.png"
    with Image.open(path) as sheet:
        assert sheet.width >= 120
    with pytest.raises(DataError, match="no pictures of family 'nobody'; it has bulma"):
        write_sheets(built, tmp_path / "sheets", ["nobody"], 3, 2, 120)


def test_the_checker_says_what_is_wrong_with_a_picture(built):
    assert check_dataset(built) == []
    grey = Image.fromarray(np.pad(np.full((40, 60), 200, np.uint8), 20))

    def one(number, name, x, y, w, h):
        return {"id": number, "name": name, "bbox": [x, y, w, h], "area": w * h}

    labels = [
        one(1, "button", 10, 10, 40, 20), one(2, "select", 30, 12, 40, 18),  # one over the other
        one(3, "icon", 40, 30, 12, 12),  # nothing there but one grey
        one(4, "link", 0, 40, 30, 3),  # cut to a line by the edge
        one(5, "text", 90, 70, 40, 20),  # outside
        one(6, "checkbox", 10, 45, 40, 8),
    ]  # fmt: skip
    found = {(kind, ids, fatal) for kind, _, ids, fatal in check_image(labels, grey)}
    assert found >= {
        ("overlap", (1, 2), False), ("invisible", (3,), False), ("clipped", (4,), False),
        ("outside", (5,), True), ("shape", (6,), False),
    }  # fmt: skip


def test_every_package_is_used_and_every_file_of_a_library_is_in_a_package_of_its_family():
    packages, families = sources.all_packages(), sources.all_families()
    cdn = tomllib.loads((sources.DATA / "cdn.toml").read_text())["rule"]
    used = {key for f in families.values() for key in (*f.packages, *f.vendor)}
    used |= {rule["package"] for rule in cdn} | set(FONT_PACKAGES)
    by_name = [p.key for p in packages.values() if p.vendor or p.name.startswith("@fontsource/")]
    assert set(packages) == used | set(by_name)
    for family in families.values():
        for name in (family.options or {}).get("libraries", ()):
            library = libraries()[name]
            for address in (*library.styles, *library.scripts, *library.dark_styles):
                parts = address.removeprefix("module:").split("/")
                key = "/".join(parts[: 2 if parts[0].startswith("@") else 1])
                assert key in family.packages or packages[key].vendor, f"{family.name}: {address}"
