"""KDEP's recipes (arXiv:2203.05180) and those of its baseline."""

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.training.recipe import Recipe
from reid_hub.training.schedules import Schedule

# The budget of a tenth of ImageNet. The colours are those of the published code, the paper has crops and flips only.
_PAPER = {
    "sampler": "shuffle",
    "batch_size": 512,
    "learning_rate": 0.3,
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9},
    "decay_by_budget": True,
    "schedule": Schedule("step", epochs=90, first_epoch=0, milestones=(30, 60)),
    "augmentation": Augmentation(
        resized_area=(0.08, 1.0), pad=0, brightness=0.1, contrast=0.1, saturation=0.1, lighting=0.05, erasing=0.0
    ),
    "config": {"image_size": (224, 224), "resize_shortest": 256, "last_stride": None},
}
_PEOPLE = {**_PAPER, "augmentation": Augmentation(erasing=0.0), "config": {}}
_DEMO = {
    **_PEOPLE,
    "batch_size": 64,
    "learning_rate": 0.1,
    "schedule": Schedule("step", epochs=6, first_epoch=0, milestones=(2, 4)),
    "augmentation": Augmentation(pad=4, erasing=0.0),
}
_METHOD = {"method": "kdep", "options": {"align": "svd+pts", "temperature": 0.1, "power": 3.0}}

KDEP: dict[str, Recipe] = {
    "kdep": Recipe(source="KDEP (arXiv:2203.05180), ResNet-18; the job gives MobileNetV2 its 0.1", **_PAPER, **_METHOD),
    "kdep-people": Recipe(
        source="reid_hub: KDEP (arXiv:2203.05180) on images of people, augmented as in Bag of Tricks",
        **_PEOPLE,
        **_METHOD,
    ),
    "kdep-supervised": Recipe(
        source="KDEP (arXiv:2203.05180), its baseline: supervised pre-training at the same budget",
        method="classification",
        **_PAPER,
    ),
    "kdep-people-supervised": Recipe(
        source="reid_hub: the same on images of people, with identities for classes",
        options={"label_smoothing": 0.0, "metric": None, "classifier_bias": True},
        **_PEOPLE,
    ),
    "kdep-demo": Recipe(source="reid_hub: pre-training of the demo's model, as short", **_DEMO, **_METHOD),
}
