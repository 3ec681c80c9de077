"""Foreign checkpoints into ours: OSNet, MSINet, MGN, SqueezeNet, DenseNet, ResNet (also LUPerson), ViT (PASS, DeiT).

A foreign file is never unpickled beyond tensors and plain containers. Every tensor of it is either used or named as
ignored, and every tensor of the trunk must be found.
"""

import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reid_hub.errors import MissingError, ReIDError
from reid_hub.hub.convert_vit import part_vit_name, to_grid, to_part_tokens
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.registry import lookup

# Wrappers that training code leaves around a network, outermost first: data parallel, MoCo (LUPerson), BoT, fast-reid.
PREFIXES = ("module.", "encoder_q.", "base.", "backbone.", "timm_model.")
CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher")


@dataclass(frozen=True)
class Conversion:
    """What became of a foreign checkpoint.

    Attributes:
        used: our tensors that were filled.
        ignored: its tensors that were not needed.
        fresh: ours left as initialised.
        made: those of `used` that it does not hold, made from what it holds.
    """

    used: list[str]
    ignored: list[str]
    fresh: list[str]
    made: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        fresh = f"; left as initialised: {', '.join(self.fresh)}" if self.fresh else ""
        ignored = f"; ignored: {', '.join(self.ignored)}" if self.ignored else ""
        made = f", of which {', '.join(self.made)} made from others" if self.made else ""
        return f"{len(self.used)} tensors used{made}{ignored}{fresh}"


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or PyTorch file by name, without the wrappers of training code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds more than tensors and plain containers, or no tensors at all.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"no checkpoint {path}: give the path of a .safetensors, .pth, .pt or .tar file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # Self-supervised training (PASS) leaves its command line in the file: a Namespace holds values, no code.
            with torch.serialization.safe_globals([Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "Weights only load failed" not in str(error) and "weights_only" not in str(error):
            raise ReIDError(f"{path} is not a PyTorch checkpoint, or it is damaged: {error}") from None
        raise ReIDError(
            f"{path} holds more than tensors and plain containers, and unpickling it could run code: refused. "
            "Re-save it on a machine you trust with torch.save(model.state_dict(), path)"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ReIDError(f"{path} is damaged or no checkpoint: {error}; fetch the file again") from None
    # Of these only what is behind the prefix is the network: MoCo files also hold the momentum encoder and the queue,
    # self-distillation's the projection behind the teacher.
    alone = {"encoder_q."}
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            alone |= {"backbone."} if name == "teacher" else set()
    content = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ReIDError(f"{path} holds no named tensors; needed is a state dict, bare or in {', '.join(CONTAINERS)}")
    for prefix in PREFIXES:
        behind = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if behind and prefix in alone:
            tensors = behind
        else:
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _resnet_name(name: str) -> str | None:
    """torchvision's names (also timm's, LUPerson's) -> transformers' ResNet; BoT's BNNeck is called bottleneck."""
    model = "backbone.model."
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"{model}embedder.embedder.{_kind(match[1])}.{match[2]}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)", name):
        stage, block, kind, number, tensor = match.groups()
        return f"{model}encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{_kind(kind)}.{tensor}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)", name):
        stage, block, number, tensor = match.groups()
        kind = "convolution" if number == "0" else "normalization"
        return f"{model}encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{kind}.{tensor}"
    if match := re.fullmatch(r"bottleneck\.(weight|running_mean|running_var|num_batches_tracked)", name):
        return f"neck.{match[1]}"
    return None


def _kind(name: str) -> str:
    return {"conv": "convolution", "bn": "normalization"}[name]


def _osnet_name(name: str) -> str | None:
    if name.startswith("classifier."):
        return None
    if name.startswith("fc."):
        return name.replace("fc.0.", "head.fc.").replace("fc.1.", "head.bn.")
    return f"backbone.{name}"


def _msinet_name(name: str) -> str:
    """The published names; their BNNecks, head and f_head, stand behind the linear layers fc and f_fc."""
    module, _, tensor = name.partition(".")
    ours = {
        "f_conv": "pooling.f_conv", "fc": "neck.fc.0", "head": "neck.norm.0", "f_fc": "neck.fc.1",
        "f_head": "neck.norm.1",
    }  # fmt: skip
    return f"{ours[module]}.{tensor}" if module in ours else f"backbone.{name}"


def _squeezenet_name(name: str) -> str | None:
    return f"backbone.{name}" if name.startswith("features.") else None


def _densenet_name(name: str) -> str | None:
    """torchvision's names; its published files call a layer's `norm1` `norm.1`."""
    if not name.startswith("features."):
        return None
    return "backbone." + re.sub(r"\.(norm|conv)\.([12])\.", r".\1\2.", name)


# How the public reproduction of MGN calls the parts of a ResNet.
_MGN_TRUNK = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3.0"}

# The blocks of a ResNet that each of its branches has for itself.
_TAIL = re.compile(r"layer(?:(3)\.([1-9]\d*)|(4)\.(\d+))\.(.+)")


def _in_branch(branch: int, block: re.Match) -> str:
    """The reproduction's name of a tensor that torchvision's ResNet has in such a block."""
    third, third_block, _, fourth_block, rest = block.groups()
    return f"p{branch}.0.{int(third_block) - 1}.{rest}" if third else f"p{branch}.1.{fourth_block}.{rest}"


def _mgn_name(name: str) -> str | None:
    """The reproduction's names, and torchvision's ResNet, whose end is the first branch's (see `_to_branches`)."""
    if match := re.fullmatch(r"reduction\.([01])\.(\w+)", name):
        return f"head.{('fc', 'bn')[int(match[1])]}.{match[2]}"
    if match := re.fullmatch(r"(?:backbone\.)?([01456])\.(.+)", name):
        name = f"{_MGN_TRUNK[match[1]]}.{match[2]}"
    if match := _TAIL.fullmatch(name):
        name = _in_branch(1, match)
    if match := re.fullmatch(r"p([123])\.(\d+\.\d+)\.(.+)", name):
        inside = (_resnet_name(f"layer1.0.{match[3]}") or "").partition(".layers.0.")[2]
        return f"backbone.tails.{int(match[1]) - 1}.{match[2]}.{inside}"
    ours = _resnet_name(name) or ""
    return ours.replace("backbone.", "backbone.trunk.", 1) if ours.startswith("backbone.") else None


def _to_branches(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with everything that MGN's branches have: those of a ResNet's end are its copies."""
    tensors = dict(tensors)
    for name, tensor in list(tensors.items()):
        if match := _TAIL.fullmatch(name):
            tensors |= {_in_branch(branch, match): tensor for branch in (2, 3)}
        elif name == "reduction.0.weight":
            tensors[name] = tensor.flatten(1)  # a 1x1 convolution there
    return tensors


def _timm_name(name: str) -> str | None:
    if match := re.fullmatch(r"bottleneck\.(weight|running_mean|running_var|num_batches_tracked)", name):
        return f"neck.{match[1]}"  # TransReID's BNNeck
    return f"backbone.model.timm_model.{name}"


NAMES: dict[str, Callable[[str], str | None]] = {
    "resnet": _resnet_name,
    "reid_osnet": _osnet_name,
    "reid_msinet": _msinet_name,
    "reid_part_vit": part_vit_name,
    "reid_squeezenet": _squeezenet_name,
    "reid_densenet": _densenet_name,
    "reid_mgn": _mgn_name,
    "timm_wrapper": _timm_name,
}
# What a foreign checkpoint may hold beside the network we build: classifiers (a distilled DeiT's second class token as
# well), projections, MSINet's second vector and spatial alignment, and batch norm's dead bias.
IGNORABLE = re.compile(
    r"((f_)?(fc|classifier|head)|fc_id_\w+|f_conv|align_module|heads|head_dist|dist_token|pre_logits|last_linear|projector"
    r"|bottleneck(_\d)?\.bias)(\.|$)"
)


def load_foreign(model: ReIDModel, tensors: dict[str, Tensor]) -> Conversion:
    """Fill `model` from a foreign state dict; the model is changed only if everything fits.

    Raises:
        ValueError: if a trunk tensor is missing, one is left over, or a shape differs; all are named.
    """
    rename = lookup(NAMES, model.config.backbone_config.model_type, "backbone that foreign checkpoints exist for")
    ours, held = model.state_dict(), set(tensors)
    if model.config.backbone_config.model_type == "reid_part_vit":
        tensors = to_part_tokens(tensors, model.config.backbone_config)
    if model.config.backbone_config.model_type == "reid_mgn":
        tensors = _to_branches(tensors)
    if model.config.backbone_config.model_type == "timm_wrapper":
        tensors = to_grid(tensors, model.backbone.model.timm_model)
    named = {name: (rename(name) or "", tensor) for name, tensor in tensors.items()}
    used = {target: tensor for target, tensor in named.values() if target in ours}
    ignored = [name for name, (target, _) in named.items() if target not in ours and IGNORABLE.match(name)]
    strange = [name for name, (target, _) in named.items() if target not in ours and not IGNORABLE.match(name)]
    misshaped = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(ours[name].shape)}"
        for name, tensor in used.items()
        if tensor.shape != ours[name].shape
    ]
    # Checkpoints from before PyTorch 0.4 have no batch counters; an ImageNet trunk has no head or neck.
    absent = [name for name in ours if name not in used and not name.endswith("num_batches_tracked")]
    missing = [name for name in absent if name.startswith("backbone.")]
    if strange or misshaped or missing:
        raise ReIDError(
            f"the checkpoint does not fit variant {model.config.variant or model.config.backbone_config.model_type!r}: "
            f"missing {_some(missing)}; unknown {_some(strange)}; other shape {_some(misshaped)}. "
            "Choose the variant that the file was trained as"
        )
    made = [target for name, (target, _) in named.items() if target in ours and name not in held]
    model.load_state_dict({**ours, **used})
    return Conversion(sorted(used), sorted(ignored), sorted(absent), sorted(made))


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"


def convert_checkpoint(path: str | Path, variant: str, out: str | Path, **overrides) -> tuple[ReIDModel, Conversion]:
    """Write a foreign checkpoint as a Hub checkpoint folder; returns the model and what became of each tensor.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint` and `load_foreign`; nothing is written then.
    """
    model = ReIDModel(ReIDConfig.from_variant(variant, **overrides))
    conversion = load_foreign(model, read_checkpoint(path))
    model.config.lineage = [{"method": "converted", "init": Path(path).name}]
    model.eval().save_pretrained(out)
    return model, conversion


def load_weights(model: ReIDModel, source: str) -> Conversion:
    """Initialise `model` by name: a file, "torchvision/NAME", "timm/NAME", or one of our checkpoints (folder or repo).

    From one of our checkpoints everything of the same name and shape is taken, and the whole trunk must be; so is its
    lineage.

    Raises:
        ValueError: if the weights do not fit.
    """
    if Path(source).is_file():
        return load_foreign(model, read_checkpoint(source))
    kind, _, name = source.partition("/")
    if kind == "torchvision":
        from torchvision.models import get_model_weights

        return load_foreign(model, get_model_weights(name).DEFAULT.get_state_dict(check_hash=True))
    if kind == "timm":
        import timm

        return load_foreign(model, timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    # A classifier of general pictures has a trunk like any other; what is on top of it stays behind.
    start = ReIDModel.from_pretrained(source)
    other, ours = start.state_dict(), model.state_dict()
    used = {key: value for key, value in other.items() if key in ours and value.shape == ours[key].shape}
    missing = [key for key in ours if key.startswith("backbone.") and key not in used]
    if missing:
        raise ReIDError(f"{source} has another trunk: {_some(missing)} of this model's tensors are not in it")
    model.load_state_dict({**ours, **used})
    model.config.lineage = start.config.lineage
    return Conversion(sorted(used), sorted(set(other) - set(used)), sorted(set(ours) - set(used)))
