"""Open teachers by name: reid_hub models, and image models of transformers or timm wrapped as `ReIDModel`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from reid_hub.errors import MissingError, ReIDError
from reid_hub.hub.convert import load_weights
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.runs.models import open_model
from reid_hub.runs.settings import RunSettings, TrainSettings
from reid_hub.runs.train import Train

_SIZE = 224  # default image size of pre-trained image models


def open_teacher(name: str | Path) -> ReIDModel:
    """Open a trained model: a folder or repository of reid_hub or transformers, or "timm/NAME" with timm's weights.

    A library's model keeps its strides, image size and normalisation, and gets no neck.

    Raises:
        ValueError, FileNotFoundError, OSError: if there is no such model, or it is no image model with a feature.
    """
    name = str(name)
    if name.startswith("timm/"):
        return _from_timm(name)
    if not Path(name).is_dir() and "/" not in name:
        raise ReIDError(
            f"a teacher is a trained model, a folder, NAMESPACE/NAME of the Hub or timm/NAME; got {name!r}: train that "
            "variant first (`reid-hub train`) and give its folder"
        )
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise MissingError(f"{name} is no checkpoint folder: it has no config.json")
    config = AutoConfig.from_pretrained(name)
    if config.model_type == ReIDConfig.model_type:
        return open_model(name)
    return _from_transformers(name, config)


def small_teacher(settings: RunSettings) -> str:
    """Train a small teacher on the labels of a run's data, in `out`/teacher; returns its folder.

    A narrow ResNet-18 with an embedding of twice its width, so that there is something to shorten. A finished teacher
    is reused, and an interrupted training run is resumed.
    """
    stage = Train(
        TrainSettings.like(
            settings,
            out=Path(settings.output.out) / "teacher",
            resume=True,
            push=None,
            model="res18-x0.25",
            init=None,
            recipe="demo",
            set={
                "config.head": "linear",
                "config.embedding_dim": 256,
                "config.neck": "none",
                **settings.recipe.of_machine,
            },
            epochs=3,
            validation=0.0,
        )
    )
    if not stage.done():
        splits = stage.load()
        if "pid" not in splits["train"].column_names or max(splits["train"]["pid"]) < 0:
            raise ReIDError(
                f"{settings.data.data} has no identities to train a teacher on: give a teacher that is trained"
            )
        stage.run()
    return str(stage.folder)


def _from_timm(name: str) -> ReIDModel:
    from reid_hub.models.backbone_timm import require_timm

    require_timm()
    import timm

    data = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    size = tuple(data.input_size[1:]) if data else (_SIZE, _SIZE)
    model = ReIDModel(ReIDConfig.from_variant(name, image_size=size, last_stride=None, neck="none"))
    load_weights(model, name)
    model.name_or_path = name
    return model


def _from_transformers(name: str, config: PreTrainedConfig) -> ReIDModel:
    config = getattr(config, "vision_config", config)  # the vision tower of CLIP and the like
    if hasattr(config, "mask_ratio"):
        config.mask_ratio = 0.0  # nothing is masked when features are extracted
    network = AutoModel.from_pretrained(name, config=config)
    source = network.state_dict()
    processor = _processor(name, config)
    fields = {"backbone_config": config, "pooling": _pooling(network), "neck": "none", **_input(config, processor)}
    try:
        model = ReIDModel(ReIDConfig(**fields))
        ours = model.backbone.model.state_dict()
    except (ValueError, KeyError) as error:
        raise ReIDError(f"{name} ({config.model_type}) is no image model whose feature is known: {error}") from error
    if missing := sorted(set(ours) - set(source)):
        raise ReIDError(f"{name} lacks {len(missing)} tensors of its own backbone ({', '.join(missing[:3])}, ...)")
    model.backbone.model.load_state_dict({key: source[key] for key in ours})
    if getattr(processor, "do_flip_channel_order", False):
        _read_rgb(model.backbone.model, name)
    model.name_or_path = name
    return model


def _pooling(network: PreTrainedModel) -> str:
    """Pooling of tokens: timm's setting, else the class token, or all tokens if there is none."""
    if network.config.model_type == "timm_wrapper":
        from reid_hub.models.backbone_timm import own_pooling

        return own_pooling(network.timm_model)
    if network.config.model_type == "dinov3_convnext":
        return "cls"
    marks = ("cls_token", "class_embedding")
    return "cls" if any(name.split(".")[-1] in marks for name in network.state_dict()) else "avg"


def _processor(name: str, config: PreTrainedConfig) -> Any | None:
    """The image processor beside a checkpoint; None if there is none, or timm's data configuration is sufficient."""
    if getattr(config, "pretrained_cfg", None):
        return None
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return None


@torch.no_grad()
def _read_rgb(network: nn.Module, name: str) -> None:
    """Convert a network trained on BGR (MobileViT) to take RGB.

    Raises:
        ValueError: unless exactly one convolution takes the image.
    """
    readers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3]
    if len(readers) != 1:
        raise ReIDError(
            f"a model that reads BGR must read it by one convolution, whose weights are turned around; {name} has "
            f"{len(readers)} of three channels: take another teacher"
        )
    readers[0].weight.copy_(readers[0].weight.flip(1))


def _input(config: PreTrainedConfig, processor: Any | None) -> dict[str, Any]:
    """Image size and normalisation, as far as the checkpoint defines them."""
    data = getattr(config, "pretrained_cfg", None) or {}
    if data:  # of timm
        sizes, mean, std = {"height": data["input_size"][1], "width": data["input_size"][2]}, data["mean"], data["std"]
    elif processor is None:
        return {"image_size": _square(getattr(config, "image_size", None))}
    else:
        sizes = (getattr(processor, "do_center_crop", None) and processor.crop_size) or processor.size
        normalised = getattr(processor, "do_normalize", True)
        mean, std = (processor.image_mean, processor.image_std) if normalised else ([0.0] * 3, [1.0] * 3)
    return {"image_size": _square(sizes), "image_mean": list(mean), "image_std": list(std)}


def _square(size: Any) -> list[int]:
    """Convert any notation of an image size to (height, width)."""
    if isinstance(size, int):
        return [size, size]
    if isinstance(size, (list, tuple)):
        return list(size)
    sizes: Mapping[str, int] = dict(size or {})
    edge = sizes.get("shortest_edge", _SIZE)
    return [sizes.get("height", edge), sizes.get("width", edge)]
