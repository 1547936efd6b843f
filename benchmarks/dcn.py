"""How fast the two CPU paths of the deformable convolution are: `python benchmarks/dcn.py`.

Prints the median over repeats of forward and of forward + backward, and the ratio taken in one run.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from clq_train.dcn import deform_conv3x3_by_rows

REPEATS = 7


def torchvision_path(feature: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return deform_conv2d(feature, offset, weight, bias, padding=1)


def median_ms(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {REPEATS}")
    print(f"{'map':>22} {'pass':>9} {'torchvision':>12} {'rows':>9} {'ratio':>7}")
    for channels, rows, cols in ((64, 56, 56), (64, 100, 160), (256, 50, 80)):
        shape = f"{channels} x {rows} x {cols}"
        torch.manual_seed(0)
        args = [
            torch.randn(1, channels, rows, cols),
            torch.randn(1, 18, rows, cols),
            torch.randn(channels, channels, 3, 3),
            torch.randn(channels),
        ]
        with torch.inference_mode():
            theirs = median_ms(lambda a=args: torchvision_path(*a))
            ours = median_ms(lambda a=args: deform_conv3x3_by_rows(*a))
        print(f"{shape:>22} {'forward':>9} {theirs:9.1f} ms {ours:6.1f} ms {theirs / ours:6.1f}x")
        leaves = [a.clone().requires_grad_() for a in args]
        theirs = median_ms(lambda a=leaves: torchvision_path(*a).sum().backward())
        ours = median_ms(lambda a=leaves: deform_conv3x3_by_rows(*a).sum().backward())
        print(f"{shape:>22} {'fwd+bwd':>9} {theirs:9.1f} ms {ours:6.1f} ms {theirs / ours:6.1f}x")


if __name__ == "__main__":
    main()
