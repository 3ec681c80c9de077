"""Training: published recipes as data, and a trainer that follows them."""

from reid_hub.training.arguments import deciding_arguments, training_arguments
from reid_hub.training.holdout import Holdout, TrainingSubset, draw_identities, draw_images, split_identities
from reid_hub.training.optimizers import OPTIMIZERS, build_optimizer, build_scheduler
from reid_hub.training.overrides import override, parse_override
from reid_hub.training.recipe import Recipe
from reid_hub.training.recipes import RECIPES
from reid_hub.training.sampling import build_sampler
from reid_hub.training.schedules import Schedule
from reid_hub.training.trainer import ReIDTrainer, share_buffers

__all__ = [
    "OPTIMIZERS",
    "RECIPES",
    "Holdout",
    "ReIDTrainer",
    "Recipe",
    "Schedule",
    "TrainingSubset",
    "build_optimizer",
    "build_sampler",
    "build_scheduler",
    "deciding_arguments",
    "draw_identities",
    "draw_images",
    "override",
    "parse_override",
    "share_buffers",
    "split_identities",
    "training_arguments",
]
