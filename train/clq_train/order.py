"""Which image stands at which position of an endless stream of epochs."""

import numpy as np


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """(images,) the indices of all images, shuffled anew for each epoch."""
    return np.random.default_rng([seed, 1, epoch]).permutation(images)


def grouped_epoch_order(wide: np.ndarray, seed: int, epoch: int, batch: int) -> np.ndarray:
    """The same with steps of one kind: all images wide or all tall, but for one step an epoch.

    wide     (images,) bool
    batch    images a step; step s of the run holds the positions s * batch .. (s + 1) * batch - 1,
             counted over all epochs
    returns  (images,) indices

    One kind comes first and the other after it; then the whole steps are shuffled. Where an epoch
    ends within a step, the next one goes on with the same kind.  Grouping by aspect as in
    Detectron2's AspectRatioGroupedDataset, with every image once an epoch and by position alone.
    """
    order = epoch_order(len(wide), seed, epoch)
    order = order[np.argsort(wide[order] ^ (epoch % 2 == 1), kind="stable")]
    begun = min(-epoch * len(wide) % batch, len(wide))  # positions in a step of the epoch before
    whole = (len(wide) - begun) // batch
    steps = order[begun : begun + whole * batch].reshape(whole, batch)
    shuffled = np.random.default_rng([seed, 3, epoch]).permutation(steps)
    return np.concatenate([order[:begun], shuffled.ravel(), order[begun + whole * batch :]])
