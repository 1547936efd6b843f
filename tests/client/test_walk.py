"""What folders, patterns and lists of names mean; nothing is held in memory."""

import glob
import io
import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clq_client.batch.journal import Journal, Seen
from clq_client.batch.walk import copy_name, files_below, matches, names_of, pattern_regex

FILES = ["a.png", "ab.png", "x/a.png", "x/b.jpg", "x/y/a.png", "x/.hidden/a.png", "x/[a].png", ".h"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_file_below_a_folder_is_found_and_links_to_folders_are_not_followed(tree):
    (tree / "x" / "loop").symlink_to(tree)
    (tree / "x" / "link.png").symlink_to(tree / "a.png")
    (tree / "x" / "dangling.png").symlink_to(tree / "none")
    expected = {f"./{name}" for name in FILES} | {"./x/link.png"}
    assert set(files_below(".")) == expected


def test_a_folder_that_cannot_be_read_is_an_error_among_the_names(tree):
    (error,) = files_below("none")
    assert isinstance(error, FileNotFoundError)
    assert error.filename == "none"


PARTS = st.sampled_from(["*", "**", "x", "?", "a*", "*.png", "[ab].*", "[!a]*", "a.png", "y", "[["])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(PARTS, min_size=1, max_size=4), dot=st.booleans())
def test_a_pattern_means_what_pythons_glob_means(tree, parts, dot):
    pattern = ("./" if dot else "") + "/".join(parts)
    if "**" in parts and parts[-1] != "**" and parts.count("**") > 1:
        return  # glob finds a name twice there
    expected = {
        os.path.normpath(name)
        for name in glob.glob(pattern, recursive=True, include_hidden=True)
        if os.path.isfile(name)
    }
    assert {os.path.normpath(name) for name in matches(pattern)} == expected


@given(st.text(max_size=12))
def test_any_text_is_a_pattern_that_compiles(text):
    re.compile(pattern_regex(text))


@given(st.lists(st.binary(min_size=1, max_size=9)), st.booleans())
def test_names_are_split_as_they_were_joined(names, null):
    end = b"\0" if null else b"\n"
    names = [name.replace(end, b"x") for name in names]
    for tail in (b"", end):
        found = list(names_of(io.BytesIO(end.join(names) + tail), end))
        assert [os.fsencode(name) for name in found] == names


@given(st.text(alphabet="ab./", min_size=1, max_size=12))
def test_the_name_of_a_copy_stays_in_its_folder(key):
    path = os.path.normpath(os.path.join("/drawn", copy_name(key)))
    assert path.startswith("/drawn/")
    assert path.endswith(".png")


@given(st.lists(st.text(alphabet=st.characters(), max_size=6)))
def test_a_key_is_new_once(keys):
    seen = Seen()
    for place, key in enumerate(keys):
        assert seen.add(key) == (key not in keys[:place])
    seen.close()


def test_a_full_disk_leaves_whole_lines(tmp_path):
    import resource

    path = tmp_path / "r.jsonl"
    line = '{"path": "%d", "ok": true, "x": "' + "x" * 300 + '"}'
    with Journal(path) as journal:
        journal.append([line % 1])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                journal.append([line % 2, line % 3])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == line % 1 + "\n"


RSS = """
import io, sys
from clq_client.batch.journal import Seen
from clq_client.batch.walk import names_of

def rss_kib():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])

class Names(io.RawIOBase):
    number = 0
    def read(self, size):
        first, Names.number = Names.number, Names.number + 1000
        numbers = range(first, first + 1000)
        names = (b"/a/long/folder/name/of/a/data/set/%09d.jpg" % i for i in numbers)
        return b"\\n".join(names) + b"\\n" if first < int(sys.argv[1]) else b""

seen = Seen()
for count, name in enumerate(names_of(Names(), b"\\n"), start=1):
    assert seen.add(name)
    if count == int(sys.argv[1]) // 10:
        before = rss_kib()
print(count, rss_kib() - before)
"""


def test_the_names_of_a_long_list_are_not_held_in_memory():
    done = subprocess.run(
        [sys.executable, "-c", RSS, "300000"], capture_output=True, text=True, check=True
    )
    count, grown_kib = map(int, done.stdout.split())
    assert count == 300_000
    assert grown_kib < 12 * 1024  # the table's cache is 8 MiB; a set of the names has 40 MiB
