"""The sampler that a recipe asks for."""

from collections.abc import Sequence

from torch.utils.data import Sampler

from reid_hub.data.samplers import IdentitySampler, ShuffleSampler
from reid_hub.errors import ReIDError
from reid_hub.training.recipe import Recipe


def build_sampler(
    recipe: Recipe, pids: Sequence[int], *, batch_size: int, seed: int, num_processes: int = 1
) -> Sampler:
    """The recipe's sampler over a training set; it yields whole batches of `batch_size` for every process in turn.

    Raises:
        ValueError: if an identity batch cannot be divided into identities.
    """
    if recipe.sampler == "shuffle":
        return ShuffleSampler(len(pids), batch_size, seed=seed, num_processes=num_processes)
    num_ids, rest = divmod(batch_size, recipe.num_instances)
    if rest:
        raise ReIDError(
            f"the batch size must be divisible by the recipe's {recipe.num_instances} images per identity, got "
            f"{batch_size}"
        )
    counters = {"seed": seed, "num_processes": num_processes}
    return IdentitySampler(pids, num_ids, recipe.num_instances, once=recipe.sampler == "identity_once", **counters)
