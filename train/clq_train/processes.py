"""The processes of a run: one alone, or those that `torchrun` started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from clq_train.errors import TrainingError

# A process waits as long as another evaluates or writes; torchrun ends all when one is gone.
FOR_EVER = timedelta(days=365)
STORE_TIMEOUT = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of the run: its number and their count, in all and on this host."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes, prints and evaluates."""
        return self.rank == 0


def find_processes() -> Processes:
    """What torchrun says in the environment; one process without it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return Processes()
    return Processes(*(int(os.environ[name]) for name in names))


@contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Connects the processes: CPU tensors over gloo, those of GPUs over NCCL.

    Raises TrainingError when another process is gone.
    """
    if processes.count == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store, rank, count = next(dist.rendezvous("env://", timeout=FOR_EVER))
    # torchrun's store outlives the processes that it starts again: without a prefix they would read
    # the addresses of those that are gone.
    own_store = dist.PrefixStore(f"attempt-{_attempt()}", store)
    dist.init_process_group(backend, store=own_store, rank=rank, world_size=count, timeout=FOR_EVER)
    try:
        yield
    except RuntimeError as error:
        # gloo has no error class of its own.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        raise TrainingError(
            "another process of the run has ended; torchrun says which. The checkpoints of the run "
            "are whole, --resume goes on from the last"
        ) from error
    # Not after an error: nobody is left to agree with, and the process ends anyway.
    dist.destroy_process_group()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, in each of them; without gradient."""
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def wait_for_all() -> None:
    """Returns when every process is here."""
    mean_over_processes(torch.zeros(1))


def first_to_fail() -> bool:
    """Whether no process of the run has told an error before this one: only one is to speak."""
    if find_processes().count == 1:
        return True
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT)
        return store.add(f"clq_train/errors/{_attempt()}", 1) == 1
    except RuntimeError:  # nobody to ask any more
        return True


def _attempt() -> str:
    """How often torchrun has started the processes again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
