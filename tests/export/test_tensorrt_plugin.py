"""Our plugins in the real Python bindings of TensorRT 11 and 10, with empty libraries behind them.

try_bindings.py is what runs there.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stub_tensorrt import stub_environment, stub_libraries, tensorrt_folders

pytest.importorskip("triton", reason="triton is not installed")

OLDER = "tensorrt_cu13_bindings==10.16.1.11"
STUBS = "tensorrt-stubs==10.13.0.35.1"


def pip_into(folder: Path, package: str) -> None:
    """Installs the one package there; skips if that can't be done."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{package} can't be installed: {done.stderr.strip()[-200:]}")


def try_bindings(bindings: Path, folder: Path) -> dict:
    environment = stub_environment(bindings, stub_libraries(folder), folder / "link")
    script = Path(__file__).parent / "try_bindings.py"
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict) -> None:
    """Types, shapes, launches and arguments for maps of 3 x 64 x 13 x 21."""
    for used, missing in found["names"].values():
        assert len(used) >= 12
        assert missing == []
    half, single = ["HALF"], ["FLOAT"]
    mixed = [*half * 2, "FLOAT", *half * 2]
    aligned_half = [*half * 2, "FLOAT", "HALF", "FLOAT", "HALF"]
    combinations = {
        "DeformConv2d": [single * 5, half * 5, mixed],
        "AlignedConv2d": [single * 6, aligned_half],
    }
    assert len(found["plugins"]) == 4
    for name, plugin in found["plugins"].items():
        operator, dtype = name.split()
        assert plugin["output_type"] == dtype
        assert plugin["output_shape"] == [3, 64, 13, 21]
        assert plugin["combinations"] == combinations[operator]
        assert plugin["arguments"] == [13, 21, 13, 21]
        assert set(plugin["argument_types"]) == {"INT32"}
        launch = plugin["launch"]
        assert (launch["grid_x"], launch["grid_y"], launch["grid_z"]) == (5, 1, 3)  # 273 cells, 64
        assert (launch["block_x"], launch["block_y"], launch["block_z"]) == (256, 1, 1)
        assert f".reqntid {launch['block_x']}" in plugin["ptx"]
        assert 0 < launch["shared_mem"] <= 48 * 1024
        assert f".visible .entry {plugin['kernel']}(" in plugin["ptx"]
        pointers = 6 if operator == "AlignedConv2d" else 5
        assert plugin["ptx"].count(f".align 1 {plugin['kernel']}_param_") == pointers


@pytest.mark.slow
def test_the_plugins_pass_the_bindings_of_tensorrt_11(tmp_path):
    if not tensorrt_folders():
        pytest.skip("needs tensorrt_cu13_bindings")
    found = try_bindings(tensorrt_folders()[0], tmp_path)
    assert found["version"].startswith("11.")
    check(found)


@pytest.mark.slow
def test_the_plugins_pass_the_bindings_of_tensorrt_10(tmp_path):
    pip_into(tmp_path / "wheel", OLDER)
    found = try_bindings(tmp_path / "wheel" / "tensorrt_bindings", tmp_path)
    assert found["version"].startswith("10.16.")
    check(found)


@pytest.mark.slow
def test_mypy_finds_no_error_against_the_stubs_of_tensorrt_10(tmp_path):
    """The newest stubs are of 10.13, without tensorrt.plugin, and with mistakes of their own: two
    that keep them from being parsed are mended here, and only errors in our file count.
    """
    pip_into(tmp_path / "stubs", STUBS)
    stub = tmp_path / "stubs" / "tensorrt_bindings" / "tensorrt.pyi"
    text = re.sub(r"\bin: list", "in_: list", stub.read_text())
    stub.write_text(
        text.replace("channel_axis: int) -> IScale", "channel_axis: int = ...) -> IScale")
    )
    spec = importlib.util.find_spec("clq_export.tensorrt_network")
    assert spec is not None
    assert spec.origin is not None
    ours = Path(spec.origin)
    root = ours.parents[2]
    configuration = tmp_path / "mypy.ini"
    configuration.write_text(
        "[mypy]\nfollow_imports = silent\nstrict = true\nplugins = pydantic.mypy\n"
        f"mypy_path = {tmp_path / 'stubs'}:{root / 'serve'}:{root / 'export'}\n"
        "[mypy-cuda.*,onnxruntime.*]\nignore_missing_imports = true\n"
    )
    wrong = tmp_path / "wrong.py"
    wrong.write_text(ours.read_text().replace("builder.create_network(", "builder.make_network("))

    def errors(path: Path) -> list[str]:
        command = [sys.executable, "-m", "mypy", "--config-file", configuration, path]
        command += ["--cache-dir", tmp_path / "cache"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert "[syntax]" not in done.stdout
        return [line for line in done.stdout.splitlines() if f"{path.name}:" in line]

    assert errors(ours) == []
    assert any('has no attribute "make_network"' in line for line in errors(wrong))
