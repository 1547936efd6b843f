"""The deformable 3x3 convolution of the head as one GPU kernel, written in Triton.

One program computes BM output channels of BP cells.  For each of the nine taps it samples BC input
channels bilinearly and multiplies them with the weights, so the nine-fold larger map of sampled
values that an im2col makes is never stored.  Positions, bilinear weights and sums are float32
whatever the type of the maps: float16 resolves only 1/8 cell from column 128 on.

With FROM_BOXES the kernel computes the offsets itself: the head's bias-free 1x1 convolution from
the 4 regressed numbers of a cell to its 18 offsets.  That is 8 multiplications for each cell and
tap, and it saves a map of 18 channels, which would be written and read once (72 bytes of a cell
each way; the 64 float16 features of a cell have 128).
"""

import functools
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clq_export.errors import ExportError

MAX_SHARED_BYTES = 48 * 1024  # more needs a driver attribute that TensorRT is not known to set
# Of CUDA 12.9, the oldest that knows compute capability 12.0: TensorRT's driver may be older than
# Triton, whose own choice is the newest.
PTX_VERSION = 88
_HIDDEN = 2  # pointers that Triton appends to the parameters: scratch memory, profiler


@triton.jit
def _dcn3x3(
    x,  # (N, C, rows_in, cols_in)
    w,  # PACKED: (9, C, M), else (M, C, 3, 3)
    moves,  # offsets (N, 18, rows_out, cols_out) or, FROM_BOXES, deltas (N, 4, rows_out, cols_out)
    b,  # (M,)
    w_offset,  # FROM_BOXES: (18, 4) float32, else None
    rows_in,
    cols_in,
    rows_out,
    cols_out,
    y,  # (N, M, rows_out, cols_out)
    C: tl.constexpr,
    M: tl.constexpr,
    STRIDE: tl.constexpr,
    RELU: tl.constexpr,
    PACKED: tl.constexpr,
    FROM_BOXES: tl.constexpr,
    BM: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    cells_in, cells_out = rows_in * cols_in, rows_out * cols_out
    cell = tl.program_id(0) * BP + tl.arange(0, BP)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    image = tl.program_id(2).to(tl.int64)  # a batch may have more than 2**31 elements
    x += image * C * cells_in
    y += image * M * cells_out
    real = cell < cells_out
    row, col = cell // cols_out, cell % cols_out
    if FROM_BOXES:
        moves += image * 4 * cells_out
        d0 = tl.load(moves + cell, mask=real, other=0.0).to(tl.float32)
        d1 = tl.load(moves + cells_out + cell, mask=real, other=0.0).to(tl.float32)
        d2 = tl.load(moves + 2 * cells_out + cell, mask=real, other=0.0).to(tl.float32)
        d3 = tl.load(moves + 3 * cells_out + cell, mask=real, other=0.0).to(tl.float32)
    else:
        moves += image * 18 * cells_out
    total = tl.zeros((BM, BP), tl.float32)
    for tap in range(9):
        if FROM_BOXES:
            at = w_offset + 8 * tap
            dy = tl.load(at) * d0 + tl.load(at + 1) * d1
            dy += tl.load(at + 2) * d2 + tl.load(at + 3) * d3
            dx = tl.load(at + 4) * d0 + tl.load(at + 5) * d1
            dx += tl.load(at + 6) * d2 + tl.load(at + 7) * d3
        else:
            at = moves + 2 * tap * cells_out + cell
            dy = tl.load(at, mask=real, other=0.0).to(tl.float32)
            dx = tl.load(at + cells_out, mask=real, other=0.0).to(tl.float32)
        # Beyond one cell outside everything is zero; the clamp keeps far offsets in int32.
        top = (row * STRIDE + tap // 3 - 1).to(tl.float32) + dy
        left = (col * STRIDE + tap % 3 - 1).to(tl.float32) + dx
        # Times 1.0, not .to(): torch's launch makes a size of 1 a Python number.
        top = tl.minimum(tl.maximum(top, -1.0), rows_in * 1.0)
        left = tl.minimum(tl.maximum(left, -1.0), cols_in * 1.0)
        y0, x0 = tl.floor(top).to(tl.int32), tl.floor(left).to(tl.int32)
        fy, fx = top - y0.to(tl.float32), left - x0.to(tl.float32)
        in_y0, in_y1 = real & (y0 >= 0) & (y0 < rows_in), real & (y0 >= -1) & (y0 < rows_in - 1)
        in_x0, in_x1 = (x0 >= 0) & (x0 < cols_in), (x0 >= -1) & (x0 < cols_in - 1)
        corner = y0 * cols_in + x0
        for c0 in range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            in_c = (c < C)[:, None]
            p = x + c[:, None] * cells_in + corner[None, :]
            v00 = tl.load(p, mask=in_c & (in_y0 & in_x0)[None, :], other=0.0).to(tl.float32)
            v01 = tl.load(p + 1, mask=in_c & (in_y0 & in_x1)[None, :], other=0.0).to(tl.float32)
            p += cols_in
            v10 = tl.load(p, mask=in_c & (in_y1 & in_x0)[None, :], other=0.0).to(tl.float32)
            v11 = tl.load(p + 1, mask=in_c & (in_y1 & in_x1)[None, :], other=0.0).to(tl.float32)
            upper = v00 + (v01 - v00) * fx[None, :]
            lower = v10 + (v11 - v10) * fx[None, :]
            sampled = upper + (lower - upper) * fy[None, :]
            if PACKED:
                at_w = (tap * C + c[None, :]) * M + m[:, None]
            else:
                at_w = (m[:, None] * C + c[None, :]) * 9 + tap
            weight = tl.load(w + at_w, mask=(c < C)[None, :] & (m < M)[:, None], other=0.0)
            total = tl.dot(weight, sampled.to(weight.dtype), total, input_precision="ieee")
    total += tl.load(b + m, mask=m < M, other=0.0).to(tl.float32)[:, None]
    if RELU:
        total = tl.maximum(total, 0.0)
    out = y + m[:, None] * cells_out + cell[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=(m < M)[:, None] & real[None, :])


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """What one compiled kernel is for.

    dtype       of the maps, the weights and the bias
    moves       type of the offsets or deltas; the weights of FROM_BOXES are float32
    packed      weights are (9, C, M), see pack_weight, rather than ONNX's (M, C, 3, 3)
    from_boxes  offsets are computed from the regressed deltas
    """

    in_channels: int
    out_channels: int
    dtype: Literal["fp16", "fp32"]
    moves: Literal["fp16", "fp32"]
    relu: bool
    packed: bool
    from_boxes: bool
    stride: int = 1

    @property
    def blocks(self) -> tuple[int, int, int]:
        """BM, BP, BC.  BM holds all output channels up to 256: each block of them samples anew."""
        bm = min(256, max(16, triton.next_power_of_2(self.out_channels)))
        # More than 16 channels at once make ptxas spill registers on 7.5 and 8.0 elsewhere.
        bc = 32 if self.in_channels > 16 and bm <= 64 and self.dtype == "fp16" else 16
        return bm, 64 if bm <= 128 else 32, bc

    @property
    def warps(self) -> int:
        return 8 if self.out_channels > 32 else 4

    @property
    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        bm, bp, bc = self.blocks
        found = {"C": self.in_channels, "M": self.out_channels, "STRIDE": self.stride}
        found |= {"RELU": self.relu, "PACKED": self.packed, "FROM_BOXES": self.from_boxes}
        return found | {"BM": bm, "BP": bp, "BC": bc}


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """PTX of one kernel; its parameters are the input pointers, four int32, the output pointer.

    shared  bytes of dynamic shared memory
    """

    name: str
    ptx: str
    threads: int
    shared: int


@functools.cache
def compile_kernel(spec: KernelSpec, compute_capability: int) -> CompiledKernel:
    """PTX for GPUs of that compute capability (e.g. 90), without a GPU.

    Raises ExportError if it needs more than MAX_SHARED_BYTES or scratch memory.
    """
    signature = {"x": f"*{spec.dtype}", "w": f"*{spec.dtype}", "moves": f"*{spec.moves}"}
    signature["b"] = f"*{spec.dtype}"
    if spec.from_boxes:
        signature["w_offset"] = "*fp32"
    signature |= dict.fromkeys(("rows_in", "cols_in", "rows_out", "cols_out"), "i32")
    signature["y"] = f"*{spec.dtype}"
    constants = spec.constants if spec.from_boxes else spec.constants | {"w_offset": None}
    source = ASTSource(
        fn=_dcn3x3,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
    )
    options = {"num_warps": spec.warps, "num_stages": 1, "ptx_version": PTX_VERSION}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # has paths of this machine
        target = GPUTarget("cuda", compute_capability, 32)
        made = triton.compile(source, target=target, options=options)
    meta = made.metadata
    if meta.shared > MAX_SHARED_BYTES or meta.global_scratch_size or meta.profile_scratch_size:
        raise ExportError(
            f"{spec} for compute capability {compute_capability}: needs {meta.shared} bytes of "
            f"shared and {meta.global_scratch_size + meta.profile_scratch_size} of scratch memory; "
            f"accepted: {MAX_SHARED_BYTES} and 0"
        )
    ptx = without_hidden_parameters(made.asm["ptx"], len(signature))
    # A name of its own, because engines hold several of these kernels.
    name = f"clq_dcn3x3_{spec.in_channels}_{spec.out_channels}_{spec.dtype}_{spec.moves}"
    name += "_relu" * spec.relu + "_packed" * spec.packed + "_boxes" * spec.from_boxes
    return CompiledKernel(name, ptx.replace(meta.name, name), 32 * spec.warps, meta.shared)


def without_hidden_parameters(ptx: str, count: int) -> str:
    """The PTX of one kernel with its first `count` parameters only.

    Triton appends pointers that its own launcher fills; TensorRT's does not.  Raises ExportError
    if there are other parameters than expected, or if the kernel reads one of those dropped.
    """
    entry = re.search(r"\.visible \.entry (\w+)\((.*?)\n\)", ptx, re.DOTALL)
    parameters = [] if entry is None else [line.strip() for line in entry[2].split(",")]
    if entry is None or len(parameters) != count + _HIDDEN:
        raise ExportError(
            f"Triton made a kernel of {len(parameters)} parameters; expected {count} and {_HIDDEN} "
            "hidden ones: this version of Triton can't be used"
        )
    body = ptx[entry.end() :]
    for index in range(count, count + _HIDDEN):
        if re.search(rf"\b{entry[1]}_param_{index}\b", body):
            raise ExportError(f"Triton's kernel reads its hidden parameter {index}")
    kept = ",".join(f"\n\t{line}" for line in parameters[:count])
    return f"{ptx[: entry.start()]}.visible .entry {entry[1]}({kept}\n){body}"


def pack_weight(weight: Tensor) -> Tensor:
    """(M, C, 3, 3) as (9, C, M), which the kernel reads in order."""
    return weight.flatten(2).permute(2, 1, 0).contiguous()


def deform_conv3x3(
    x: Tensor,
    w: Tensor,
    moves: Tensor,
    b: Tensor,
    w_offset: Tensor | None = None,
    *,
    relu: bool = False,
    packed: bool = False,
    stride: int = 1,
) -> Tensor:
    """The convolution of torch tensors on a GPU, or on the CPU under TRITON_INTERPRET=1.

    x         (N, C, H, W), contiguous as all others
    w         (9, C, M) if packed, else (M, C, 3, 3)
    moves     offsets (N, 18, H', W'); with w_offset (18, 4) the deltas (N, 4, H', W')
    returns   (N, M, H', W') of the type of x
    """
    n, c, rows_in, cols_in = x.shape
    m, (rows_out, cols_out) = b.shape[0], moves.shape[2:]
    names: dict[torch.dtype, Literal["fp16", "fp32"]] = {
        torch.float16: "fp16",
        torch.float32: "fp32",
    }
    spec = KernelSpec(
        *(c, m, names[x.dtype], names[moves.dtype]),
        relu=relu,
        packed=packed,
        from_boxes=w_offset is not None,
        stride=stride,
    )
    y = x.new_empty((n, m, rows_out, cols_out))
    bm, bp, _ = spec.blocks
    grid = (triton.cdiv(rows_out * cols_out, bp), triton.cdiv(m, bm), n)
    arguments = (x, w, moves, b, w_offset, rows_in, cols_in, rows_out, cols_out, y)
    _dcn3x3[grid](*arguments, **spec.constants, num_warps=spec.warps, num_stages=1)
    return y
