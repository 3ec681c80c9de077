"""What a run does once, on the first of several processes, before all read it."""

import os

import torch.distributed as dist


def is_main_process() -> bool:
    """Whether this is the first process, or the only one."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def wait_for_everyone() -> None:
    """Return when all processes have come here; at once before they know of one another."""
    if dist.is_initialized():
        dist.barrier()
