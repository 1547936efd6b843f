"""A plan is loaded only for the model, the TensorRT and the GPU that it was built for."""

from pathlib import Path

import pytest

from clq_serve.bundle import Bundle, load_bundle
from clq_serve.errors import BundleError
from clq_serve.golden import Tolerance
from clq_serve.tensorrt_plan import Profile, find_plan, read_plan_info, write_plan

PROFILE = Profile(min=(1, 64, 64, 3), opt=(2, 128, 192, 3), max=(4, 192, 192, 3))
HERE = {"tensorrt": "11.4.0.106", "compute_capability": "9.0"}


def put(bundle: Bundle, folder: Path, data: bytes = b"PLAN", **other: str) -> Path:
    return write_plan(
        data,
        folder,
        bundle,
        precision="fp32",
        accepted=Tolerance(),
        profiles=(PROFILE,),
        **(HERE | other),
    )


def test_a_plan_is_named_by_model_tensorrt_and_gpu(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    path = put(bundle, bundle_copy / "engines")
    digest = bundle.digest[7:23]
    assert path.name == f"{digest}-trt11.4.0.106-sm90-fp32.plan"
    files = sorted(item.name for item in path.parent.iterdir())
    assert files == [path.with_suffix(".json").name, path.name]
    assert read_plan_info(path).profiles == (PROFILE,)


@pytest.mark.parametrize("place", ["bundle", "cache"])
def test_a_plan_is_found_in_the_bundle_and_in_the_cache(
    place: str, bundle_copy: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(bundle_copy)
    cache = tmp_path / "cache"
    put(bundle, cache if place == "cache" else bundle_copy / "engines")
    put(bundle, cache, b"OTHER", tensorrt="10.16.1.11")
    plan = find_plan(load_bundle(bundle_copy), cache, **HERE)  # engines/ belongs to a bundle
    assert plan.data == b"PLAN"


def test_a_plan_for_something_else_is_refused_with_both_values(
    bundle_copy: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(bundle_copy)
    put(bundle, tmp_path / "c", tensorrt="10.16.1.11")
    put(bundle, tmp_path / "c", compute_capability="8.6")
    other = Bundle(bundle.manifest, bundle.path, "sha256:" + "0" * 64)
    put(other, tmp_path / "c")
    with pytest.raises(BundleError) as caught:
        find_plan(bundle, tmp_path / "c", **HERE)
    message = str(caught.value)
    assert "no plan for TensorRT 11.4.0.106 and compute capability 9.0" in message
    assert "tensorrt is 10.16.1.11, wanted 11.4.0.106" in message
    assert "compute_capability is 8.6, wanted 9.0" in message
    assert f"model_digest is {other.digest}, wanted {bundle.digest}" in message


def test_no_plan_at_all_says_where_it_was_looked_for(bundle_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"engines or {tmp_path}.*; found: nothing"):
        find_plan(load_bundle(bundle_copy), tmp_path, **HERE)


def test_a_changed_plan_is_refused(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    path = put(bundle, bundle_copy / "engines")
    path.write_bytes(b"PLAM")
    with pytest.raises(BundleError, match=r"SHA-256 is .*, its sidecar says"):
        find_plan(bundle, None, **HERE)
    path.write_bytes(b"PLAN and more")
    with pytest.raises(BundleError, match="has 13 bytes, its sidecar says 4"):
        find_plan(bundle, None, **HERE)


def test_a_wrong_sidecar_is_refused(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    path = put(bundle, bundle_copy / "engines")
    sidecar = path.with_suffix(".json")
    text = sidecar.read_text()
    sidecar.write_text(text.replace('"tensorrt": "11.4.0.106"', '"tensorrt": "eleven"'))
    with pytest.raises(BundleError, match="tensorrt: 'eleven'"):
        find_plan(bundle, None, **HERE)
    sidecar.write_text(text.replace('"compute_capability": "9.0"', '"compute_capability": "8.0"'))
    with pytest.raises(BundleError, match=r"its sidecar describes .*-sm80-fp32"):
        find_plan(bundle, None, **HERE)
    sidecar.unlink()
    with pytest.raises(BundleError, match=r"its sidecar .*\.json is not there"):
        find_plan(bundle, None, **HERE)
