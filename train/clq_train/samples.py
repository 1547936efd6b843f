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
from clq_serve.preprocess import Colour, ImageLimits, decode_image, fill_padded
from clq_train.augment import Sample, augment
from clq_train.clq import Objects
from clq_train.coco import Record
from clq_train.config import Config
from clq_train.errors import DataError
from clq_train.order import epoch_order, grouped_epoch_order
from clq_train.pixel_cache import PixelCache


@dataclass(frozen=True, slots=True)
class Batch:
    images: Tensor  # (B, H, W, 3) uint8 RGB
    objects: list[Objects]  # of each image, in its pixels
    paths: list[str]  # of the image files


class SampleStream(Dataset[Sample]):
    """Samples 0 .. schedule.steps * schedule.batch - 1 of a run.

    trainings  processes on this machine that have such a stream: they share out run.cache_mib

    Raises DataError if there is no record, ConfigError if there is no memory for run.cache_mib.
    """

    def __init__(self, records: Sequence[Record], config: Config, trainings: int = 1) -> None:
        if not records:
            raise DataError("data.splits: there is no image to train on")
        self.records, self.config = list(records), config
        self._wide = np.array([r.width >= r.height for r in self.records])
        self._order = -1, np.zeros(0, np.int64)  # the epoch that was asked for last
        sizes = {record.path: (record.height, record.width) for record in self.records}
        self._slots = {path: slot for slot, path in enumerate(sizes)}  # one for all its records
        self._cache = PixelCache(list(sizes.values()), config.run.cache_mib * 2**20 // trainings)

    def __len__(self) -> int:
        return self.config.schedule.steps * self.config.schedule.batch

    def __getitem__(self, position: int) -> Sample:
        index, seed = self.image_at(position), self.config.run.seed
        rng = np.random.default_rng([seed, 2, position])
        step = position // self.config.schedule.batch
        by_step = self.config.augment.size_by_step
        size_rng = np.random.default_rng([seed, 4, step]) if by_step else None
        pixels, record = self._pixels(index), self.records[index]
        sample = augment(pixels, record.boxes, record.labels, self.config, rng, size_rng)
        return replace(sample, path=str(record.path))

    def image_at(self, position: int) -> int:
        """Index in the records of the image at a position; an epoch shows each once."""
        epoch, place = divmod(position, len(self.records))
        if self._order[0] != epoch:
            seed, batch = self.config.run.seed, self.config.schedule.batch
            if self.config.augment.group_aspect:
                order = grouped_epoch_order(self._wide, seed, epoch, batch)
            else:
                order = epoch_order(len(self.records), seed, epoch)
            self._order = epoch, order
        return int(self._order[1][place])

    def _pixels(self, index: int) -> np.ndarray:
        record = self.records[index]
        slot = self._slots[record.path]
        pixels = self._cache.get(slot)
        if pixels is None:
            pixels = read_pixels(record, self.config.input.background)
            self._cache.put(slot, pixels)
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


def collate(samples: Sequence[Sample], multiple: int, pad_value: Colour) -> Batch:
    """Images padded right and bottom to the largest, rounded up to `multiple`."""
    height = _round_up(max(s.pixels.shape[0] for s in samples), multiple)
    width = _round_up(max(s.pixels.shape[1] for s in samples), multiple)
    images = np.empty((len(samples), height, width, 3), np.uint8)
    for image, sample in zip(images, samples, strict=True):
        fill_padded(image, sample.pixels, pad_value)
    objects = [Objects(torch.from_numpy(s.boxes), torch.from_numpy(s.labels)) for s in samples]
    return Batch(torch.from_numpy(images), objects, [s.path for s in samples])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
