"""Published training recipes as data."""

from reid_hub.data.augmentation_options import Augmentation
from reid_hub.training.recipe import Recipe
from reid_hub.training.recipes_kdep import KDEP
from reid_hub.training.schedules import Schedule

_BOT = {
    "options": {
        "label_smoothing": 0.1,
        "metric": "triplet",
        "metric_options": {"margin": 0.3, "hard_factor": 0.2},
        "center_weight": 5e-4,
    },
    "learning_rate": 3.5e-4,
}
_WARMUP = {"warmup_epochs": 10, "warmup_factor": 0.01}

_VIT = {
    "options": {"label_smoothing": 0.0, "metric": "triplet", "metric_options": {"margin": None}},
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9},
    "weight_decay": 1e-4,
    "bias_lr_factor": 2.0,
    "augmentation": Augmentation(
        erasing_area=(0.02, 1 / 3), erasing_aspect=(0.3, 1 / 0.3), erasing_aspect_scale="log", erasing_fill="noise"
    ),
    "config": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
    "interpolation": "bicubic",
}

_FD = {
    "options": {"label_smoothing": 0.0, "metric": None, "classifier_bias": True},
    "sampler": "shuffle",
    "batch_size": 32,
    "learning_rate": 0.0025,
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9},
}
_FD_ERASING = {"pad": 0, "erasing_aspect": (0.3, 3.33), "erasing_fill": "zero"}
_FD_TEACHER = Schedule("step", epochs=80, first_epoch=0, milestones=(20, 40, 60), gamma=0.5)

_PTL = {
    "method": "ptl",
    "options": {"hidden": (256, 256), "label_smoothing": 0.0},
    "sampler": "shuffle",
    "batch_size": 32,
    "learning_rate": 0.01,
    "optimizer": "sgd",
    "optimizer_options": {"momentum": 0.9},
    "schedule": Schedule("step", epochs=50, first_epoch=0, milestones=(10, 20, 30, 40)),
    "augmentation": Augmentation(pad=0, crop_scale=9 / 8, erasing=0.0),
}
_STD = {"method": "std", "options": {**_PTL["options"], "lam": 0.8}}
_PTL_DEMO = {
    "learning_rate": 2e-3,
    "optimizer": "adam",  # from random weights and within minutes
    "optimizer_options": {},
    "schedule": Schedule("cosine", epochs=4, first_epoch=0, final_factor=0.01),
    "augmentation": Augmentation(pad=4, erasing=0.0),
}

# Of the training images, as everybody uses them.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

RECIPES: dict[str, Recipe] = {
    "bot": Recipe(
        source="OSKT (arXiv:2511.06016), CNN students downstream: Bag of Tricks with a harder triplet",
        schedule=Schedule("step", epochs=100, milestones=(40, 70, 90), **_WARMUP),
        **_BOT,
    ),
    "bot-teacher": Recipe(
        source="OSKT (arXiv:2511.06016), CNN teachers",
        schedule=Schedule("step", epochs=200, milestones=(40, 70, 130), **_WARMUP),
        **_BOT,
    ),
    "vit": Recipe(
        source="OSKT (arXiv:2511.06016), ViT teachers and students",
        learning_rate=4e-4,
        schedule=Schedule("cosine", epochs=120, first_epoch=0, warmup_epochs=20),
        **_VIT,
    ),
    "transreid": Recipe(
        source="TransReID (arXiv:2102.04378), ViT baseline, as in arXiv:2405.14730",
        learning_rate=0.008,
        schedule=Schedule("cosine", epochs=120, first_epoch=1, warmup_epochs=5),
        **_VIT,
    ),
    "oskt": Recipe(
        source="OSKT (arXiv:2511.06016), refinement of a CNN's weight chain",
        method="oskt",
        schedule=Schedule("step", epochs=100, milestones=(50, 70), **_WARMUP),
        **{**_BOT, "options": {**_BOT["options"], "alpha": 1.0, "alpha_schedule": "constant"}},
    ),
    "oskt-vit": Recipe(
        source="OSKT (arXiv:2511.06016), refinement of a ViT's weight chain",
        method="oskt",
        learning_rate=4e-4,
        schedule=Schedule("cosine", epochs=120, first_epoch=0, warmup_epochs=20),
        **{**_VIT, "options": {**_VIT["options"], "alpha": 1.0, "alpha_schedule": "ramp"}},
    ),
    "osnet": Recipe(
        source="torchreid, im_osnet_x1_0_softmax_256x128_amsgrad; its 10 epochs of a frozen backbone are left out",
        options={"label_smoothing": 0.1, "metric": None, "classifier_bias": True},
        sampler="shuffle",
        learning_rate=0.0015,
        optimizer_options={"amsgrad": True},
        schedule=Schedule("step", epochs=150, first_epoch=0, milestones=(60,)),
        augmentation=Augmentation(pad=0, erasing=0.0),
    ),
    "msinet": Recipe(
        source="MSINet (arXiv:2303.07065), single domain, without its spatial alignment",
        options={
            "label_smoothing": 0.1,
            "metric": "triplet",
            "metric_options": {"margin": 0.3, "normalise": True},
            "classifier_bias": True,
            "per_part": True,
        },
        learning_rate=0.065,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9},
        schedule=Schedule("step", epochs=350, first_epoch=0, milestones=(150, 225, 300), **_WARMUP),
    ),
    "fd": Recipe(
        source="Factorized Distillation (arXiv:1811.08073), initial student and whole-image teacher",
        schedule=_FD_TEACHER,
        augmentation=Augmentation(crop_scale=9 / 8, **_FD_ERASING),
        **_FD,
    ),
    "fd-teacher": Recipe(
        source="Factorized Distillation (arXiv:1811.08073), teachers of parts of the image",
        schedule=_FD_TEACHER,
        augmentation=Augmentation(
            crop_scale=9 / 8, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2, **_FD_ERASING
        ),
        **_FD,
    ),
    "fd-student": Recipe(
        source="Factorized Distillation (arXiv:1811.08073), final student",
        method="fd",
        schedule=Schedule("step", epochs=50, first_epoch=0, milestones=(15, 30, 45), gamma=0.5),
        # Neither cropped nor turned, or the teachers' views would not be those of the image any more.
        augmentation=Augmentation(**_FD_ERASING),
        **{**_FD, "options": {**_FD["options"], "alpha": 4.0, "beta": 2.0}},
    ),
    "compress": Recipe(
        source="Embedding Compression (arXiv:2405.14730): TransReID's ViT baseline with a compressed embedding",
        method="compression",
        learning_rate=0.008,
        schedule=Schedule("cosine", epochs=120, first_epoch=1, warmup_epochs=5),
        **_VIT,
    ),
    "compress-bot": Recipe(
        source="reid_hub: a CNN's embedding compressed with the losses of arXiv:2405.14730, trained as Bag of Tricks",
        method="compression",
        options={"label_smoothing": 0.1, "metric": "triplet", "metric_options": {"margin": None}},
        learning_rate=3.5e-4,
        schedule=Schedule("step", epochs=60, milestones=(30, 50), **_WARMUP),
    ),
    "ptl": Recipe(
        source="Progressive Transfer Learning (arXiv:1908.02492), fine-tuning of ResNet and DenseNet", **_PTL
    ),
    "ptl-mgn": Recipe(
        source="PTL (arXiv:1908.02492), released code of MGN and MGN+PTL; identity_weight 2 is MGN's reproduction",
        method="ptl",
        options={
            "hidden": (),
            "label_smoothing": 0.0,
            "per_part": True,
            "metric": "triplet",
            "metric_options": {"margin": 1.2},
            "metric_parts": 3,
            "identity_weight": 1.0,
        },
        sampler="identity_once",
        batch_size=16,
        learning_rate=2e-4,
        optimizer_options={"amsgrad": True},
        schedule=Schedule("step", epochs=450, first_epoch=0, milestones=(320, 360, 400)),
        augmentation=Augmentation(pad=0, erasing_fill="zero"),
        interpolation="bicubic",
        config={"interpolation": "bicubic"},
    ),
    "std": Recipe(source="PTL (arXiv:1908.02492), student-teacher distillation", **{**_PTL, **_STD}),
    "cifar": Recipe(
        source="PTL's CIFAR experiments (arXiv:1908.02492) by the recipe of DenseNet (arXiv:1608.06993)",
        method="classification",
        sampler="shuffle",
        learning_rate=0.1,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9, "nesterov": True},
        weight_decay=1e-4,
        schedule=Schedule("step", epochs=300, first_epoch=0, milestones=(150, 225)),
        # DenseNet's "+"; without it set augmentation.flip and augmentation.pad to 0, and the network's dropout to 0.2.
        augmentation=Augmentation(pad=4, erasing=0.0),
        config={"neck": "none", "image_size": (32, 32), "image_mean": _CIFAR_MEAN, "image_std": _CIFAR_STD},
    ),
    "transfer": Recipe(
        source="KDEP (arXiv:2203.05180), transfer of a pre-trained backbone to Caltech-256, DTD, CUB-200 and CIFAR-100",
        method="classification",
        sampler="shuffle",
        # Or 0.001, by the data set.
        learning_rate=0.01,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9},
        schedule=Schedule("step", epochs=150, first_epoch=0, milestones=(50, 100)),
        augmentation=Augmentation(resized_area=(0.08, 1.0), pad=0, erasing=0.0),
        # The published code does not normalise its input, except for CIFAR-100. The networks are the libraries' own.
        config={
            "neck": "none",
            "last_stride": None,
            "image_size": (224, 224),
            "resize_shortest": 256,
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
        },
    ),
    "classify-demo": Recipe(
        source="reid_hub: a narrow ResNet-18 on the synthetic shapes, seconds on two CPU cores",
        method="classification",
        sampler="shuffle",
        batch_size=32,
        learning_rate=3e-3,
        schedule=Schedule("cosine", epochs=10, first_epoch=0, warmup_epochs=1, final_factor=0.01),
        augmentation=Augmentation(pad=4, erasing=0.0),
        config={"neck": "none", "image_size": (64, 64)},
    ),
    "demo": Recipe(
        source="reid_hub: a narrow ResNet-18 on the synthetic people, minutes on two CPU cores",
        # No triplet: from random weights and within minutes it draws all features together.
        options={"label_smoothing": 0.1, "metric": None},
        batch_size=32,
        learning_rate=3e-3,
        schedule=Schedule("cosine", epochs=16, first_epoch=0, warmup_epochs=2, final_factor=0.01),
        augmentation=Augmentation(pad=4),
    ),
    "compress-demo": Recipe(
        source="reid_hub: the demo's model with a compressed embedding, as short",
        method="compression",
        options={"label_smoothing": 0.1, "metric": "triplet", "metric_options": {"margin": None}},
        batch_size=32,
        learning_rate=1e-3,
        schedule=Schedule("cosine", epochs=8, first_epoch=0, warmup_epochs=1, final_factor=0.01),
        augmentation=Augmentation(pad=4),
    ),
    "ptl-demo": Recipe(source="reid_hub: PTL on the synthetic people, as short", **{**_PTL, **_PTL_DEMO}),
    "std-demo": Recipe(source="reid_hub: distillation of PTL, as short", **{**_PTL, **_STD, **_PTL_DEMO}),
    "oskt-demo": Recipe(
        source="reid_hub: refinement of the demo's model, as short",
        method="oskt",
        options={"label_smoothing": 0.1, "metric": None, "alpha": 1.0, "alpha_schedule": "constant"},
        batch_size=32,
        learning_rate=1e-3,
        schedule=Schedule("cosine", epochs=8, first_epoch=0, warmup_epochs=1, final_factor=0.01),
        augmentation=Augmentation(pad=4),
    ),
    "fd-demo": Recipe(
        source="reid_hub: distillation into the demo's model, as short",
        method="fd",
        options={"label_smoothing": 0.1, "metric": None, "alpha": 4.0, "beta": 2.0},
        batch_size=32,
        learning_rate=1e-3,
        schedule=Schedule("cosine", epochs=8, first_epoch=0, warmup_epochs=1, final_factor=0.01),
        augmentation=Augmentation(pad=0, erasing_fill="zero"),
    ),
    **KDEP,
}
