"""Synchronisation of processes: the main process does work once, before all processes read the result."""

import os

import torch.distributed as dist


def is_main_process() -> bool:
    """Whether this is the main process, or the only one."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def wait_for_everyone() -> None:
    """Wait until all processes get here; return at once if no process group is initialised."""
    if dist.is_initialized():
        dist.barrier()
