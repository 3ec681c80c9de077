"""What to pre-train from which teacher: KDEP's settings, and what of them is refused at once."""

import math
from dataclasses import dataclass
from pathlib import Path

from reid_hub.methods.kdep import ALIGNMENTS, TAPS
from reid_hub.registry import lookup
from reid_hub.runs.train import TrainSettings
from reid_hub.training import HEADS_FILE, RECIPES, Recipe, override


@dataclass
class KDEPSettings(TrainSettings):
    """What to pre-train from which teacher.

    Attributes:
        data, data_dir, data_options: the pictures, whose labels are not used; see `load_pictures`, which also takes
            `split`, `share`, `per_class`, `limit` and `streaming`. What cannot be read is left out and counted.
        model, init: the student.
        teacher: any trained model, see `open_teacher`; by default a small one is trained on the same data.
        tap: where the teacher's features are taken, a key of `TAPS`.
        align: a key of `ALIGNMENTS`, in place of the recipe's.
        basis: the file of the basis, made where it is missing; by default training/basis.safetensors in
            `output_dir`.
        weight: of the loss, or a key of `PAIR_WEIGHTS`; by default weight and scale are those of a new pair, see
            `new_pair`.
        crops: each picture is shown as so many crops, for which the teacher is asked only once; 0 draws new ones in
            every epoch.
        cache: folder of what it said of them; by default features in `output_dir`.
    """

    output_dir: str | Path = "runs/kdep"
    recipe: str = "kdep-demo"
    validation: float = 0.0
    split: str = "train"
    share: float = 1.0
    per_class: int | None = None
    limit: int | None = None
    streaming: bool = False
    teacher: str | None = None
    tap: str = "features"
    align: str | None = None
    basis: str | None = None
    weight: float | str | None = None
    crops: int = 0
    cache: str | None = None

    def __post_init__(self):
        if self.validation or self.keep_ids != 1:
            raise ValueError(
                "pre-training has no labels, so no identities are held out or left out: validation must be 0 and "
                f"keep_ids 1, got {self.validation} and {self.keep_ids}; fewer pictures are share, per_class or limit"
            )
        for name, option in (("seed", "seed"), ("num_train_epochs", "epochs")):
            if name in self.arguments:  # crops, weight decay and results would be of the other one
                raise ValueError(f"{option} is an option of its own, got {name}={self.arguments[name]} as an argument")
        if self.crops < 0:
            raise ValueError(f"crops must be at least 0, got {self.crops}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs must be above 0 and finite, got {self.epochs}")
        if Path(self.basis or "basis.safetensors").is_dir():
            raise ValueError(f"the basis is one file, got the folder {self.basis}: give {self.basis}/basis.safetensors")
        lookup(TAPS, self.tap, "tap")
        if self.recipe == "kdep" and "mobilenetv2" in self.model:  # the published rate of this student
            self.changes = {"learning_rate": 0.1, **self.changes}

    @property
    def basis_file(self) -> Path:
        """Where the basis lies, or will lie."""
        return Path(self.basis or Path(self.output_dir) / HEADS_FILE.with_name("basis.safetensors"))

    @property
    def cache_dir(self) -> Path:
        """Where the features of fixed crops lie."""
        return Path(self.cache or Path(self.output_dir) / "features")

    def pretraining_recipe(self) -> Recipe:
        """The recipe with what replaces its values.

        Raises:
            ValueError: if it is of another method, or has an unknown alignment.
        """
        changes = {**self.changes, **({} if self.align is None else {"options.align": self.align})}
        recipe = override(lookup(RECIPES, self.recipe, "recipe"), changes)
        if recipe.method != "kdep":
            raise ValueError(f"pre-training needs a recipe of the method 'kdep' (kdep, kdep-demo), got {self.recipe!r}")
        lookup(ALIGNMENTS, recipe.options["align"], "alignment")
        return recipe
