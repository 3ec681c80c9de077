"""Model families: the description of a backbone, and the registry of all of them."""

import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

# Tensors of a batch norm whose bias is not trained, such as a BNNeck.
BNNECK = "weight|running_mean|running_var|num_batches_tracked"


@dataclass(frozen=True)
class Variant:
    """A named configuration.

    Attributes:
        backbone: fields of the backbone's configuration.
        fields: further fields of the `ReIDConfig`.
        backbone_parameters, parameters: published counts, of the backbone and of the model without its classifier.
    """

    backbone: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    backbone_parameters: int | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Width:
    """The width of a network as one number, such as the channels of its stem.

    Attributes:
        get: (backbone configuration) -> its width.
        set: (backbone configuration, width) -> None; scales all stages. Raises a ValueError if a number of channels
            would not be an integer; the message names the nearest valid width.
        fields: fields of the backbone configuration that may differ between a student and its teacher.
        out: (backbone configuration) -> channels of the last feature map; an embedding of that length is scaled with
            it. None if embeddings keep their length.
    """

    get: Callable[[Any], int]
    set: Callable[[Any, int], None]
    fields: tuple[str, ...]
    out: Callable[[Any], int | None] = lambda config: None


@dataclass(frozen=True)
class Foreign:
    r"""Names of a network's tensors in other libraries' checkpoints.

    Attributes:
        names: (pattern, our name) pairs. The first pattern that matches a tensor's full name decides; our name is
            expanded as in `re.sub`: text with groups such as \1, or a function of the match.
        complete: (tensors by foreign name, our `ReIDModel`) -> the same tensors, plus those that only our network has.
        ignored: pattern of tensors in a checkpoint that the network does not need, besides classifiers and the like.
    """

    names: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
    complete: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] | None = None
    ignored: str = ""

    def rename(self, name: str) -> str | None:
        """Our name of a foreign tensor in the state dict of a `ReIDModel`; None if there is none."""
        for pattern, ours in self.names:
            if match := re.fullmatch(pattern, name):
                return match.expand(ours) if isinstance(ours, str) else ours(match)
        return None


@dataclass(frozen=True)
class Family:
    """A backbone family: its network, configuration, variants and checkpoints.

    Attributes:
        name: the `model_type` of its configurations.
        title: name in messages.
        network: (configuration) -> module with `out_channels` C, (B, 3, H, W) -> (B, C, h, w) or tokens (B, N, C). Its
            `gives`, a class attribute or property, lists its kinds of output (`KINDS` of `parts.py`, default ("map",)).
            Poolings and side networks that read earlier feature maps need `stages(pixel_values)`, `stage_channels` and
            `stage_reductions`; changing its width needs `width_groups(groups)` (see `WidthGroups`).
        config: configuration class; None if transformers defines it.
        variants: named configurations.
        width: reads and changes the width; None if the network has no single width.
        foreign: tensor names in checkpoints of other libraries; None if there are none.
        citation: BibTeX of the publication.
        strided: whether `network` accepts `last_stride` and `stride1_stage` (see `ReIDConfig`).
        fixes_size: (configuration) -> whether the network accepts images of only one size.
        set_size: (configuration, (height, width)) -> None; sets that size.
        vector_fields: configuration fields that change the embeddings without changing a weight.
        from_name: (name, (height, width)) -> fields of a `ReIDConfig`, for libraries whose models are all available as
            variants "PREFIX/NAME".
        prefix: the PREFIX of these names.
    """

    name: str
    title: str
    network: Callable[..., nn.Module]
    config: type[PreTrainedConfig] | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    width: Width | None = None
    foreign: Foreign | None = None
    citation: str | None = None
    strided: bool = False
    fixes_size: Callable[[Any], bool] = lambda config: False
    set_size: Callable[[Any, Sequence[int]], None] | None = None
    vector_fields: tuple[str, ...] = ()
    from_name: Callable[[str, tuple[int, int]], dict[str, Any]] | None = None
    prefix: str | None = None

    def __post_init__(self):
        if self.config is not None and self.config.model_type != self.name:
            raise ValueError(
                f"a family must have the name of its configurations, their model_type {self.config.model_type!r}, got "
                f"{self.name!r}"
            )

    @property
    def file(self) -> Path:
        """The file that defines the configuration and network; it is copied into every checkpoint.

        Raises:
            ValueError: if the family is defined in a notebook or a script.
        """
        module = sys.modules.get((self.config or self.network).__module__)
        if module is None or module.__name__ == "__main__" or getattr(module, "__file__", None) is None:
            raise ValueError(
                f"family {self.name!r} is not defined in an importable file, and checkpoints carry that file: put the "
                "family into a file of its own and import it"
            )
        return Path(module.__file__)


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Register a family and return it.

    End a family's file with `NAME = register(Family(...))`. For a family of the package, also add a line to
    `backbones.py`. An external family is registered by importing its file, which is copied into its checkpoints.

    Raises:
        ValueError: if another family has the same name or variants, or the file cannot be copied into checkpoints.
    """
    before = FAMILIES.get(family.name)
    if before is not None and before.file != family.file:
        raise ValueError(f"family {family.name!r} is already registered by {before.file}: choose another name")
    for name, other in FAMILIES.items():
        shared = sorted(set(family.variants) & set(other.variants))
        if shared and name != family.name:
            raise ValueError(f"family {name!r} already has the variants {', '.join(shared)}: choose other names")
    if is_outside(family):
        portable_code(family)
    FAMILIES[family.name] = family
    return family


def is_outside(family: Family) -> bool:
    """Whether a family is defined outside this folder."""
    return family.file.parent != Path(__file__).parent


def portable_code(family: Family) -> str:
    """Code of an external family as saved with checkpoints: imports from this folder become relative.

    Raises:
        ValueError: if it imports anything else from the package.
    """
    package, code = __package__ or "", family.file.read_text(encoding="utf-8")
    code = re.sub(rf"^(\s*from ){re.escape(package)}(\.\w+ import )", r"\1\2", code, flags=re.MULTILINE)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            names, travels = [node.module or ""], not node.level or _is_below(node.module)
        elif isinstance(node, ast.Import):
            names, travels = [alias.name for alias in node.names], True
        else:
            continue
        if not travels or any(name.partition(".")[0] == package.partition(".")[0] for name in names):
            raise ValueError(
                f"line {node.lineno} of {family.file}: the file travels with checkpoints, so all it may import of this "
                f"package is `from {package}.NAME import ...`, where NAME is families, width_groups, variant_fields or "
                "a backbone"
            )
    return code


def _is_below(name: str | None) -> bool:
    """Whether families may import a file of this folder: it must not import `backbones.py`, directly or indirectly."""
    file = Path(__file__).with_name(f"{name}.py")
    if name == "backbones" or not file.is_file():
        return False
    return all(map(_is_below, re.findall(r"^\s*from \.(\w+) import", file.read_text(encoding="utf-8"), re.MULTILINE)))


def scale_channels(channels: Sequence[int], old: int, new: int) -> list[int]:
    """Scale numbers of channels by new / old.

    Raises:
        ValueError: if a result is not an integer; the message names the nearest valid width.
    """
    if any(value * new % old for value in channels):
        legal = [width for width in range(1, old + 1) if not any(value * width % old for value in channels)]
        near = min(legal, key=lambda width: abs(width - new))
        raise ValueError(f"width {new} gives stages of broken channel numbers; the nearest that does not is {near}")
    return [value * new // old for value in channels]
