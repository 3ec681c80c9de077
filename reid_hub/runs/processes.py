"""What a job does once, on the first of several processes, before all read it."""

import torch.distributed as dist


def is_main_process() -> bool:
    """Whether this is the first process, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_everyone() -> None:
    """Return when all processes have come here."""
    if dist.is_initialized():
        dist.barrier()
