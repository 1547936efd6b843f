"""What the setting `device` means: on which processors the engines run, and with how many threads.

cpu         ONNX Runtime on the CPU
cuda:N      ONNX Runtime's CUDA provider on GPU N
tensorrt:N  ONNX Runtime's TensorRT provider on GPU N, engines built when a model is loaded
plan:N      TensorRT itself on GPU N, with a plan that was built before
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ACCEPTED = "cpu, or cuda:N, tensorrt:N or plan:N with the number of a GPU; several by commas"


class DeviceKind(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    PLAN = "plan"


@dataclass(frozen=True, slots=True)
class Device:
    """One processor, and what runs a model on it; `index` is 0 for the CPU."""

    kind: DeviceKind
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind is DeviceKind.CPU else f"{self.kind}:{self.index}"


CPU = Device(DeviceKind.CPU)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the engine of one lane runs, and how many CPU threads it has."""

    device: Device
    threads: int


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """What engines on a GPU are built for.

    max_batch    the largest batch they take
    tf32         whether float32 may be computed with the 10-bit mantissa of TF32
    cache        folder for engines that are derived from bundles; None = none are kept
    cuda_graphs  whether a plan is run as one CUDA graph for each input shape
    """

    max_batch: int = 8
    tf32: bool = False
    cache: Path | None = None
    cuda_graphs: bool = True


def parse_devices(text: str) -> tuple[Device, ...]:
    """The devices that `text` lists, all of one kind.  Raises ValueError."""
    found: list[Device] = []
    for part in text.split(","):
        match = re.fullmatch(r"(cpu)|(cuda|tensorrt|plan)(?::(\d{1,3}))?", part.strip())
        if match is None:
            raise ValueError(f"{part!r} is not a device; accepted: {ACCEPTED}")
        device = CPU if match[1] else Device(DeviceKind(match[2]), int(match[3] or 0))
        if device in found:
            raise ValueError(f"{device} is given twice; see sessions_per_device")
        found.append(device)
    kinds = sorted({device.kind.value for device in found})
    if len(kinds) > 1:
        raise ValueError(f"{' and '.join(kinds)} are mixed; accepted: devices of one kind")
    return tuple(found)


def lane_places(
    devices: tuple[Device, ...], sessions_per_device: int | None, threads: int
) -> tuple[Place, ...]:
    """One place for each lane: `sessions_per_device` on each device, neighbours on different ones.

    sessions_per_device  None: one session of one thread for each core on the CPU (measured by
                         benchmarks/sessions.py), one session on a GPU
    threads              CPU cores in all, shared out evenly
    """
    on_cpu = devices[0].kind is DeviceKind.CPU
    each = sessions_per_device or (threads if on_cpu else 1)
    share = max(1, threads // (each * len(devices)))
    return tuple(Place(device, share) for _ in range(each) for device in devices)


def wide_place(lanes: tuple[Place, ...], threads: int) -> Place | None:
    """Where an image that is alone runs with all cores; None where a lane does that already."""
    first = lanes[0]
    if first.device.kind is not DeviceKind.CPU or first.threads == threads:
        return None
    return Place(first.device, threads)


def placement(lanes: tuple[Place, ...], wide: Place | None) -> str:
    """The same for a person, e.g. "cpu: 2 lanes of 1 thread, 1 of 2 for a lone image"."""
    names = ", ".join(dict.fromkeys(str(place.device) for place in lanes))
    threads = lanes[0].threads
    text = f"{names}: {len(lanes)} lane{'s' * (len(lanes) > 1)}"
    text += f" of {threads} thread{'s' * (threads > 1)}"
    return text if wide is None else f"{text}, 1 of {wide.threads} for a lone image"
