"""Training samples: an endless, seeded stream of augmented images with their boxes.

Sample number `position` of a run depends on the run's seed and on `position` alone: workers can't
repeat each other, and a run that resumes goes on with the very samples it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clq_serve.errors import ImageError
from clq_serve.preprocess import ImageLimits, decode_image
from clq_train.augment import Sample, augment
from clq_train.clq import Objects
from clq_train.coco import Record
from clq_train.config import Config
from clq_train.errors import DataError


@dataclass(frozen=True, slots=True)
class Batch:
    images: Tensor  # (B, H, W, 3) uint8 RGB
    objects: list[Objects]  # of each image, in its pixels
    image_ids: list[int | None]


class SampleStream(Dataset[Sample]):
    """Samples 0 .. schedule.steps * schedule.batch - 1 of a run."""

    def __init__(self, records: Sequence[Record], config: Config) -> None:
        self.records, self.config = list(records), config
        self._cache: dict[int, np.ndarray] = {}
        self._cache_room = config.run.cache_mib * 2**20

    def __len__(self) -> int:
        return self.config.schedule.steps * self.config.schedule.batch

    def __getitem__(self, position: int) -> Sample:
        epoch, place = divmod(position, len(self.records))
        seed = self.config.run.seed
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(self.records))
        index = int(order[place])
        rng = np.random.default_rng([seed, 2, position])
        record = self.records[index]
        sample = augment(self._pixels(index), record.boxes, record.labels, self.config, rng)
        return replace(sample, image_id=record.image_id)

    def _pixels(self, index: int) -> np.ndarray:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        pixels = read_pixels(self.records[index], self.config.input.background)
        if pixels.nbytes <= self._cache_room:
            self._cache_room -= pixels.nbytes
            self._cache[index] = pixels
        return pixels


def read_pixels(record: Record, background: tuple[int, int, int]) -> np.ndarray:
    """The image of a record, upright RGB uint8, decoded as the service decodes it.

    Raises DataError when it can't be decoded, or has another size than the annotations state.
    """
    try:
        pixels = decode_image(record.path.read_bytes(), ImageLimits(), background).pixels
    except (OSError, ImageError) as error:
        raise DataError(f"{record.path}: {error}") from error
    if pixels.shape[:2] != (record.height, record.width):
        raise DataError(
            f"{record.path}: the image is {pixels.shape[1]} x {pixels.shape[0]}, "
            f"the annotations say {record.width} x {record.height}"
        )
    return pixels


def collate(samples: Sequence[Sample], multiple: int, pad_value: Sequence[int]) -> Batch:
    """Images padded right and bottom to the largest, rounded up to `multiple`."""
    height = _round_up(max(s.pixels.shape[0] for s in samples), multiple)
    width = _round_up(max(s.pixels.shape[1] for s in samples), multiple)
    images = np.empty((len(samples), height, width, 3), np.uint8)
    images[:] = np.asarray(pad_value, np.uint8)
    for image, sample in zip(images, samples, strict=True):
        image[: sample.pixels.shape[0], : sample.pixels.shape[1]] = sample.pixels
    objects = [Objects(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in samples]
    return Batch(torch.from_numpy(images), objects, [s.image_id for s in samples])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
