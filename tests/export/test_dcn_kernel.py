"""Our DCN kernel without a GPU: numbers in Triton's interpreter, code by Triton and ptxas."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clq_export.dcn_kernel import (
    MAX_SHARED_BYTES,
    KernelSpec,
    _dcn3x3,
    compile_kernel,
    without_hidden_parameters,
)
from clq_export.errors import ExportError

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
# The built-in model's and the paper's head; a width that fills no block.
CHANNELS = ((64, 64), (256, 256), (96, 80))
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def spec(channels: tuple[int, int] = (64, 64), dtype="fp16", form="boxes") -> KernelSpec:
    fused = form == "boxes"
    moves = "fp32" if fused else dtype
    return KernelSpec(*channels, dtype, moves, relu=fused, packed=fused, from_boxes=fused)


def interpret(*shapes: str) -> dict[str, tuple[float, float]]:
    script = Path(__file__).parent / "interpret_dcn.py"
    command = [sys.executable, str(script), *shapes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_equal_to_torchvision(found: dict[str, tuple[float, float]]) -> None:
    wrong = {name: pair for name, pair in found.items() if not pair[0] <= pair[1]}
    assert wrong == {}


def test_the_kernel_gives_what_torchvision_gives():
    found = interpret("stride 2", "one cell", "far offsets")
    assert len(found) == 3 * 2 * 3
    assert_equal_to_torchvision(found)


@pytest.mark.slow
def test_the_kernel_gives_what_torchvision_gives_on_all_shapes():
    found = interpret()
    assert len(found) >= 12 * 2 * 3
    assert_equal_to_torchvision(found)


def assemble(ptx: str, folder: Path) -> dict[str, int]:
    """What ptxas -v says of it: registers, bytes of spill stores, spill loads and static shared."""
    target = re.search(r"\.target (sm_(\d+)a?)", ptx)
    assert target is not None
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    tool = PTXAS / ("ptxas-blackwell" if int(target[2]) >= 100 else "ptxas")
    command = [tool, "-v", f"-arch={target[1]}", source, "-o", folder / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = {"registers": r"Used (\d+) registers", "stores": r"(\d+) bytes spill stores"}
    figures |= {"loads": r"(\d+) bytes spill loads", "frame": r"(\d+) bytes stack frame"}
    found = {name: re.search(pattern, done.stderr) for name, pattern in figures.items()}
    assert all(found.values()), done.stderr
    shared = re.search(r"(\d+) bytes smem", done.stderr)
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    return numbers | {"shared": int(shared[1]) if shared else 0}


def assert_fits(made_for: KernelSpec, capability: int, folder: Path) -> None:
    kernel = compile_kernel(made_for, capability)
    used = assemble(kernel.ptx, folder)
    print(f"sm_{capability} {kernel.name}: {used['registers']} registers, {kernel.shared} shared")
    assert (used["stores"], used["loads"], used["frame"]) == (0, 0, 0)
    assert kernel.shared + used["shared"] <= MAX_SHARED_BYTES
    assert used["registers"] * kernel.threads <= 65536


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_kernel_of_the_built_in_model_fits_an_sm_80(dtype, tmp_path):
    assert_fits(spec(dtype=dtype), 80, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_fits_every_gpu(capability, tmp_path):
    for channels, dtype, form in itertools.product(CHANNELS, ("fp16", "fp32"), ("plain", "boxes")):
        assert_fits(spec(channels, dtype, form), capability, tmp_path)


def test_the_parameters_are_the_declared_ones_and_no_path_is_inside():
    kernel = compile_kernel(spec(), 80)
    entry = re.search(rf"\.visible \.entry {kernel.name}\((.*?)\n\)", kernel.ptx, re.DOTALL)
    assert entry is not None
    kinds = re.findall(r"\.param \.(u\d+)", entry[1])
    assert kinds == ["u64"] * 5 + ["u32"] * 4 + ["u64"]
    assert "_param_10" not in kernel.ptx
    assert "/" + __file__.split("/")[1] + "/" not in kernel.ptx
    assert ".py" not in kernel.ptx


def test_half_precision_uses_the_tensor_cores_with_float32_sums():
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in compile_kernel(spec(), 80).ptx


def test_the_kernel_compiles_as_torch_launches_it_on_a_map_of_one_cell():
    """A launch from Python compiles integers of value 1 in, as constants."""
    made_for = spec()
    ones = dict.fromkeys(("rows_in", "cols_in", "rows_out", "cols_out"), 1)
    signature = dict.fromkeys(("x", "w", "b", "y"), "*fp16")
    signature |= dict.fromkeys(("moves", "w_offset"), "*fp32")
    names = {name: signature.get(name, "constexpr") for name in _dcn3x3.arg_names}
    source = ASTSource(fn=_dcn3x3, signature=names, constexprs=made_for.constants | ones)
    options = {"num_warps": made_for.warps, "num_stages": 1}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "mma" in made.asm["ptx"]


HIDDEN = """.visible .entry k(
\t.param .u64 k_param_0,
\t.param .u64 k_param_1,
\t.param .u64 k_param_2
)
{ ld.param.u64 %rd1, [k_param_0]; READS }
"""


def test_hidden_parameters_that_are_not_read_are_dropped():
    text = without_hidden_parameters(HIDDEN.replace("READS", ""), 1)
    assert re.findall(r"k_param_\d", text) == ["k_param_0", "k_param_0"]


@pytest.mark.parametrize(
    ("ptx", "count", "message"),
    [
        (HIDDEN.replace("READS", "[k_param_2]"), 1, "reads its hidden parameter 2"),
        (HIDDEN, 2, "a kernel of 3 parameters; expected 2 and 2 hidden ones"),
        ("nothing", 1, "a kernel of 0 parameters"),
    ],
)
def test_a_kernel_of_another_form_is_refused(ptx, count, message):
    with pytest.raises(ExportError, match=message):
        without_hidden_parameters(ptx, count)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_kernel_on_a_gpu_gives_what_torchvision_gives(dtype):
    """Needs a GPU that torch can use; prints both times."""
    import torch
    from torchvision.ops import deform_conv2d

    from clq_export.dcn_kernel import deform_conv3x3, pack_weight

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    for rows, cols in ((104, 160), (13, 20), (1, 1)):
        x = torch.randn(4, 64, rows, cols, device="cuda", dtype=kind)
        w = (torch.randn(64, 64, 3, 3, device="cuda") / 24).to(kind)
        b = torch.randn(64, device="cuda", dtype=kind)
        deltas = torch.randn(4, 4, rows, cols, device="cuda")
        w_offset = torch.randn(18, 4, device="cuda")
        offset = torch.einsum("oj,njhw->nohw", w_offset, deltas)
        expected = deform_conv2d(x.float(), offset, w.float(), b.float(), padding=1).relu()
        packed = pack_weight(w)
        found = deform_conv3x3(x, packed, deltas, b, w_offset, relu=True, packed=True)
        accepted = 1e-3 * (1 + expected.abs().max()) if dtype == "float16" else 1e-4
        assert (found.float() - expected).abs().max() <= accepted
        times = [
            triton.testing.do_bench(call)
            for call in (
                lambda: deform_conv3x3(x, packed, deltas, b, w_offset, relu=True, packed=True),  # noqa: B023
                lambda: deform_conv2d(x, offset.to(kind), w, b, padding=1),  # noqa: B023
            )
        ]
        print(f"{dtype} 4x64x{rows}x{cols}: ours {times[0]:.3f} ms, torchvision {times[1]:.3f} ms")
