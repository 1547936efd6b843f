"""Our two TensorRT plugins around dcn_kernel, as quickly deployable ones: compiled when an engine
is built, and inside of it from then on, so that no Python is needed where it runs.

clq::DeformConv2d   the node of a bundle exported with `--dcn plugin`
clq::AlignedConv2d  the same with the 1x1 convolution of its offsets and the ReLU, see
                    tensorrt_graph; w is (9, C, M)

Annotations are read as objects by TensorRT: no `from __future__ import annotations` here.
"""

import functools
from typing import Any, Literal

import tensorrt as trt
import tensorrt.plugin as trtp

from clq_export.dcn_kernel import CompiledKernel, KernelSpec, compile_kernel
from clq_export.errors import ExportError

_Implementation = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]


@functools.cache
def register_plugins(compute_capability: int, lazy: bool = False) -> None:
    """Registers both for GPUs of that compute capability (e.g. 90), once in a process.

    lazy  not in TensorRT's registry, which parsing needs: for tests without TensorRT's library
    """

    @trtp.register("clq::DeformConv2d", lazy_register=lazy)
    def deform_conv(
        x: trtp.TensorDesc, w: trtp.TensorDesc, offset: trtp.TensorDesc, b: trtp.TensorDesc
    ) -> trtp.TensorDesc:
        return _output(x, offset, b)

    @trtp.autotune("clq::DeformConv2d")
    def deform_conv_types(
        x: trtp.TensorDesc,
        w: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        b: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        maps = "FP32|FP16|FP16"
        types = ", ".join([maps, maps, "FP32|FP16|FP32", maps, maps])
        return [trtp.AutoTuneCombination(types, "LINEAR")]

    @trtp.aot_impl("clq::DeformConv2d")
    def deform_conv_kernel(
        x: trtp.TensorDesc,
        w: trtp.TensorDesc,
        offset: trtp.TensorDesc,
        b: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        return _implementation(x, offset, b, compute_capability, fused=False)

    @trtp.register("clq::AlignedConv2d", lazy_register=lazy)
    def aligned_conv(
        x: trtp.TensorDesc,
        w: trtp.TensorDesc,
        deltas: trtp.TensorDesc,
        b: trtp.TensorDesc,
        w_offset: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        return _output(x, deltas, b)

    @trtp.autotune("clq::AlignedConv2d")
    def aligned_conv_types(
        x: trtp.TensorDesc,
        w: trtp.TensorDesc,
        deltas: trtp.TensorDesc,
        b: trtp.TensorDesc,
        w_offset: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        maps, moves = "FP32|FP16", "FP32|FP32"
        types = ", ".join([maps, maps, moves, maps, moves, maps])
        return [trtp.AutoTuneCombination(types, "LINEAR")]

    @trtp.aot_impl("clq::AlignedConv2d")
    def aligned_conv_kernel(
        x: trtp.TensorDesc,
        w: trtp.TensorDesc,
        deltas: trtp.TensorDesc,
        b: trtp.TensorDesc,
        w_offset: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        return _implementation(x, deltas, b, compute_capability, fused=True)


def _output(x: trtp.TensorDesc, moves: trtp.TensorDesc, b: trtp.TensorDesc) -> trtp.TensorDesc:
    """(N, M, rows, cols) of the type of x."""
    n, _, _, _ = x.shape_expr
    _, _, rows, cols = moves.shape_expr
    return trtp.from_shape_expr((n, b.shape_expr[0], rows, cols), dtype=x.dtype)


def _implementation(
    x: trtp.TensorDesc,
    moves: trtp.TensorDesc,
    b: trtp.TensorDesc,
    compute_capability: int,
    fused: bool,
) -> _Implementation:
    """Name and PTX of the kernel, how it is launched, and its arguments between the pointers."""
    channels = x.shape[1], b.shape[0]
    if min(channels) < 1:
        raise ExportError(f"the plugin takes fixed numbers of channels, not {channels}")
    spec = KernelSpec(
        *channels,
        _type_name(x.dtype),
        _type_name(moves.dtype),
        relu=fused,
        packed=fused,
        from_boxes=fused,
    )
    kernel = compile_kernel(spec, compute_capability)
    n, _, rows_in, cols_in = x.shape_expr
    _, _, rows_out, cols_out = moves.shape_expr
    launch = _launch(spec, kernel, n, rows_out * cols_out)
    sizes = (rows_in, cols_in, rows_out, cols_out)
    return kernel.name, kernel.ptx, launch, trtp.SymIntExprs.from_tuple(sizes)


def _launch(
    spec: KernelSpec, kernel: CompiledKernel, n: Any, cells: Any
) -> trtp.KernelLaunchParams:
    bm, bp, _ = spec.blocks
    launch = trtp.KernelLaunchParams()
    launch.grid_x = trtp.cdiv(cells, bp)
    launch.grid_y = -(-spec.out_channels // bm)
    launch.grid_z = n
    launch.block_x = kernel.threads
    launch.shared_mem = kernel.shared
    return launch


def _type_name(dtype: Any) -> Literal["fp16", "fp32"]:
    return "fp16" if dtype == trt.DataType.HALF else "fp32"
