"""From a graph to a TensorRT plan, with TensorRT 10.16 and 11: the names here are those of both."""

import os
from collections.abc import Sequence
from pathlib import Path

import tensorrt as trt

from clq_export.errors import ExportError
from clq_serve.tensorrt_plan import Profile


def build_plan(
    graph: bytes,
    input_name: str,
    profiles: Sequence[Profile],
    *,
    plugins: int,
    workspace_bytes: int,
    timing_cache: Path,
) -> bytes:
    """The plan of an ONNX graph for the GPU that is current, built strongly typed and without TF32.

    plugins       how many of the graph's nodes are our plugin
    timing_cache  file of measured kernels, read if it is there and written again

    Raises ExportError if TensorRT cannot parse or build it; what it logged says more.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = _parse(builder, graph, plugins, logger)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # its 10-bit mantissa is fp16's, under the name fp32
    for number, shapes in enumerate(profiles):
        profile = builder.create_optimization_profile()
        bounds = [trt.Dims(list(shape)) for shape in (shapes.min, shapes.opt, shapes.max)]
        profile.set_shape(input_name, *bounds)
        if config.add_optimization_profile(profile) != number:
            raise ExportError(f"TensorRT refuses profile {number}: {shapes.min} to {shapes.max}")
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.exists() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise ExportError(f"{timing_cache}: is of another GPU or TensorRT; remove it")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError("TensorRT builds no engine; what it logged says why")
    _write(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _parse(
    builder: trt.Builder, graph: bytes, plugins: int, logger: trt.Logger
) -> trt.INetworkDefinition:
    """The network of the graph.  Raises ExportError, also if a plugin was not taken."""
    # TensorRT 11 types every network strongly, 10 when asked; the numbers of the flags differ.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT cannot parse the graph: {errors}")
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    found = kinds.count(trt.LayerType.PLUGIN_V3)
    if found < plugins:
        raise ExportError(
            f"TensorRT took our plugin for {found} of {plugins} nodes; --no-plugin builds without"
        )
    return network


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
