"""Convert checkpoints of other libraries, by the tensor names that each model family defines (`Foreign`).

Only tensors and plain containers are ever unpickled. Every tensor of the file is either used or reported as ignored,
and every tensor of the backbone must be found.
"""

import re
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reid_hub.errors import MissingError, ReIDError
from reid_hub.models import ReIDConfig, ReIDModel
from reid_hub.models.families import FAMILIES, Foreign
from reid_hub.registry import lookup

# Prefixes that training code adds to names, outermost first: data parallel, MoCo (LUPerson), BoT, fast-reid.
PREFIXES = ("module.", "encoder_q.", "base.", "backbone.", "timm_model.")
CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher")


@dataclass(frozen=True)
class Conversion:
    """How the tensors of a foreign checkpoint were used.

    Attributes:
        used: tensors of the model that were filled.
        ignored: tensors of the checkpoint that were not needed.
        fresh: tensors of the model that keep their initial values.
        made: tensors in `used` that are not in the checkpoint, but were derived from others in it.
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
    """Read the tensors of a .safetensors or PyTorch file by name, without the prefixes of training code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds anything but tensors and plain containers, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"no checkpoint {path}: give the path of a .safetensors, .pth, .pt or .tar file")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            # PASS stores its command line in the file; a Namespace holds only values, no code.
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
    # With these prefixes, all other tensors are not part of the network: MoCo files also hold the momentum encoder and
    # the queue, those of self-distillation the projection head of the teacher.
    alone = {"encoder_q."}
    for name in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            alone |= {"backbone."} if name == "teacher" else set()
    content = content if isinstance(content, dict) else {}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ReIDError(
            f"{path} holds no named tensors; it must be a state dict, or hold one under {', '.join(CONTAINERS)}"
        )
    for prefix in PREFIXES:
        behind = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if behind and prefix in alone:
            tensors = behind
        else:
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


# What a foreign checkpoint may hold besides the network: classifiers, projections, the unused bias of batch norm.
IGNORABLE = r"fc|classifier|heads?|last_linear|projector|bottleneck(_\d)?\.bias"


def foreign_of(config: ReIDConfig) -> Foreign:
    """How checkpoints of other libraries map to models of this configuration.

    Raises:
        ValueError: if the family defines no foreign names.
    """
    known = {family.name: family.foreign for family in FAMILIES.values() if family.foreign is not None}
    return lookup(known, config.backbone_config.model_type, "backbone that foreign checkpoints exist for")


def load_foreign(model: ReIDModel, tensors: dict[str, Tensor]) -> Conversion:
    """Load a foreign state dict into `model`; the model is changed only if everything fits.

    Raises:
        ValueError: if a tensor of the backbone is missing, a tensor is unknown, or a shape differs; names all of them.
    """
    foreign = foreign_of(model.config)
    ours, held = model.state_dict(), set(tensors)
    if foreign.complete is not None:
        tensors = foreign.complete(tensors, model)
    named = {name: (foreign.rename(name) or "", tensor) for name, tensor in tensors.items()}
    used = {target: tensor for target, tensor in named.values() if target in ours}
    ignorable = re.compile(rf"({'|'.join(filter(None, (IGNORABLE, foreign.ignored)))})(\.|$)")
    ignored = [name for name, (target, _) in named.items() if target not in ours and ignorable.match(name)]
    strange = [name for name, (target, _) in named.items() if target not in ours and not ignorable.match(name)]
    misshaped = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(ours[name].shape)}"
        for name, tensor in used.items()
        if tensor.shape != ours[name].shape
    ]
    # Checkpoints from before PyTorch 0.4 have no batch counters; ImageNet backbones have no embedding layer or neck.
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
    """Convert a foreign checkpoint to a checkpoint folder for the Hub; returns the model and the `Conversion`.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint` and `load_foreign`; nothing is written in that case.
    """
    model = ReIDModel(ReIDConfig.from_variant(variant, **overrides))
    conversion = load_foreign(model, read_checkpoint(path))
    model.config.lineage = [{"method": "converted", "init": Path(path).name}]
    model.eval().save_pretrained(out)
    return model, conversion


def load_weights(model: ReIDModel, source: str) -> Conversion:
    """Initialise `model` from a file, "torchvision/NAME", "timm/NAME", or a reid_hub checkpoint (folder or repository).

    From a reid_hub checkpoint all tensors of the same name and shape are loaded, and the lineage is taken over; the
    backbone must match completely.

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
    # A checkpoint of an image classifier works as well: its backbone is taken, its classifier is not.
    start = ReIDModel.from_pretrained(source)
    other, ours = start.state_dict(), model.state_dict()
    used = {key: value for key, value in other.items() if key in ours and value.shape == ours[key].shape}
    missing = [key for key in ours if key.startswith("backbone.") and key not in used]
    if missing:
        raise ReIDError(f"{source} has another backbone: {_some(missing)} of this model's tensors are not in it")
    model.load_state_dict({**ours, **used})
    model.config.lineage = start.config.lineage
    return Conversion(sorted(used), sorted(set(other) - set(used)), sorted(set(ours) - set(used)))
