"""A folder is served only if it is exactly the bundle that its manifest describes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clq_serve.bundle import (
    MODEL_FILE,
    builtin_bundle_path,
    describe_file,
    load_bundle,
    read_manifest,
    sha256_file,
    write_manifest,
)
from clq_serve.configuration import read_settings
from clq_serve.errors import BundleError, SettingsError
from clq_serve.repository import find_bundles

Tree = dict


def edit(folder: Path, change: Callable[[Tree], object]) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_a_good_bundle_loads(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert (bundle.manifest.name, bundle.manifest.version) == ("tiny", 1)
    assert bundle.manifest.class_names == ["red", "green", "blue"]
    assert bundle.digest == "sha256:" + sha256_file(tiny_bundle / "model.onnx")
    assert bundle.model_path.is_file()
    assert bundle.manifest.input.rule.multiple == 64


def test_a_written_manifest_reads_back_equal(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_bundle / "manifest.json")
    path = write_manifest(manifest, tmp_path)
    assert read_manifest(path) == manifest
    assert [item.name for item in tmp_path.iterdir()] == ["manifest.json"]


def test_describe_file_gives_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    entry = describe_file(tmp_path / "a")
    assert entry.bytes == 3
    assert entry.sha256.startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1


REFUSED: dict[str, tuple[Callable[[Tree], object], str]] = {
    "extra key": (lambda t: t.update(colour="red"), "colour: is not a known key"),
    "extra key inside": (lambda t: t["input"].update(mean=[0]), "input.mean: is not a known key"),
    "missing key": (lambda t: t.pop("alpha"), "alpha: is missing"),
    "wrong type": (
        lambda t: t["input"]["pad"].update(multiple="a"),
        "input.pad.multiple: 'a' is not a whole number",
    ),
    "number as text": (lambda t: t.update(version="1"), "version: '1' is not a whole number"),
    "fraction for a whole number": (lambda t: t.update(version=1.5), "version: 1.5"),
    "format version 2": (lambda t: t.update(format_version=2), "format_version: 2 is not accepted"),
    "another format": (lambda t: t.update(format="zip"), "format: 'zip' is not accepted"),
    "another resize filter": (
        lambda t: t["input"]["resize"].update(filter="lanczos"),
        "input.resize.filter: 'lanczos' is not accepted",
    ),
    "no largest scale": (
        lambda t: t["input"]["resize"].update(largest_scale=0),
        "input.resize.largest_scale: 0",
    ),
    "sides swapped": (lambda t: t["input"]["resize"].update(shorter_px=999), "input.resize"),
    "score above 1": (lambda t: t["thresholds"].update(score=1.5), "thresholds.score: 1.5"),
    "not a number": (lambda t: t.update(alpha=float("nan")), "alpha"),
    "no candidates": (lambda t: t["outputs"].update(count=0), "outputs.count: 0"),
    "outputs share a name": (lambda t: t["outputs"].update(labels="boxes"), "share a name"),
    "class name twice": (lambda t: t["classes"][1].update(name="red"), "more than once: red"),
    "category id twice": (lambda t: t["classes"][1].update(category_id=10), "more than once: 10"),
    "comma in a class name": (lambda t: t["classes"][0].update(name="a,b"), "classes.0.name"),
    "no classes": (lambda t: t.update(classes=[]), "classes"),
    "colour out of range": (lambda t: t["input"]["pad"].update(value=[0, 0, 256]), "256"),
    "file outside": (lambda t: t["files"].update({"../x": t["files"]["model.onnx"]}), "../x"),
    "absolute file": (
        lambda t: t["files"].update({"/etc/passwd": t["files"]["model.onnx"]}),
        "/etc",
    ),
    "model not listed": (lambda t: t["files"].pop("model.onnx"), "model.onnx is not listed"),
    "listed file absent": (
        lambda t: t["files"].update(more=t["files"]["model.onnx"]),
        "there is no such file, but manifest.json lists it",
    ),
    "short digest": (lambda t: t["files"]["model.onnx"].update(sha256="ab"), "sha256"),
    "wrong size": (lambda t: t["files"]["model.onnx"].update(bytes=1), "manifest.json says 1"),
    "another name": (lambda t: t.update(name="other"), "says other/1"),
    "another version": (lambda t: t.update(version=2), "says tiny/2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_manifest_that_is_wrong_is_refused(case: str, bundle_copy: Path) -> None:
    change, message = REFUSED[case]
    edit(bundle_copy, change)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle_copy)
    assert message in str(caught.value)
    assert str(bundle_copy) in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_one_flipped_bit_is_refused(name: str, bundle_copy: Path) -> None:
    path = bundle_copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: SHA-256 is [0-9a-f]{{64}}"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_a_missing_file_is_refused(name: str, bundle_copy: Path) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: there is no such file"):
        load_bundle(bundle_copy)


def test_a_file_that_is_not_listed_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "weights.bin").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"not listed in manifest\.json: weights\.bin"):
        load_bundle(bundle_copy)


def test_a_folder_of_another_name_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_bundle, tmp_path / "renamed" / "1")
    with pytest.raises(BundleError, match="the folder is renamed/1 but its manifest says tiny/1"):
        load_bundle(moved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "clq-bundle"'])
def test_a_manifest_that_is_not_a_json_object_is_refused(text: str, bundle_copy: Path) -> None:
    (bundle_copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(bundle_copy)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        load_bundle(tmp_path / "nothing" / "1")


@pytest.mark.parametrize(
    ("name", "most_mb"), [("webui-nano", 4), ("webui-nano-int8", 2.5), ("webui-small", 15)]
)
def test_the_setting_builtin_chooses_one_of_three_small_models(name: str, most_mb: float) -> None:
    ((key, folder),) = find_bundles(read_settings({"CLQ_SERVE_BUILTIN": name}, {})).items()
    assert key.name == name
    assert folder == builtin_bundle_path(name)
    assert (folder / MODEL_FILE).stat().st_size <= most_mb * 1e6
    names = [load_bundle(path).manifest.class_names for path in (folder, builtin_bundle_path())]
    assert names[0] == names[1]


def test_the_8_bit_built_in_model_was_made_from_the_one_that_ships() -> None:
    few, whole = (load_bundle(builtin_bundle_path(n)) for n in ("webui-nano-int8", "webui-nano"))
    assert few.manifest.created["from"] == whole.digest
    assert few.manifest.version == whole.manifest.version
    assert few.manifest.input == whole.manifest.input
    lost = whole.manifest.metrics[0].AP - few.manifest.metrics[0].AP
    assert few.manifest.metrics[0].data == whole.manifest.metrics[0].data
    assert lost < 0.003


def test_an_unknown_builtin_model_is_refused() -> None:
    with pytest.raises(BundleError, match="no built-in model 'nothing'"):
        builtin_bundle_path("nothing")
    with pytest.raises(SettingsError, match="builtin"):
        read_settings({}, {"builtin": "nothing"})


def test_a_manifest_cannot_be_changed_after_reading(tiny_bundle: Path) -> None:
    manifest = load_bundle(tiny_bundle).manifest
    with pytest.raises(ValueError, match="frozen"):
        manifest.version = 2  # type: ignore[misc]


def test_golden_needs_no_pickle(tiny_bundle: Path) -> None:
    with np.load(tiny_bundle / "golden.npz", allow_pickle=False) as archive:
        assert all(archive[key].dtype != object for key in archive.files)
