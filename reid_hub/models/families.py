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
        set: (backbone configuration, width) -> None; scales all stages. Raises a ValueError for a width that would
            break a channel number, and names the nearest that does not.
        fields: of the backbone configuration, what a student does not share with its teacher.
        out: (backbone configuration) -> channels of the last map, with which an embedding of that length is scaled;
            None where embeddings keep their length.
    """

    get: Callable[[Any], int]
    set: Callable[[Any, int], None]
    fields: tuple[str, ...]
    out: Callable[[Any], int | None] = lambda config: None


@dataclass(frozen=True)
class Foreign:
    r"""Names of a network's tensors in other libraries' checkpoints.

    Attributes:
        names: (pattern, our name) in order. A tensor gets the name beside the first pattern that matches the whole of
            its own, expanded as by `re.sub`: text with groups such as \1, or a function of the match.
        complete: (tensors by foreign name, our `ReIDModel`) -> the same, with what the network needs beyond them.
        ignored: pattern of what a checkpoint may hold that the network does not need, besides classifiers and the like.
    """

    names: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
    complete: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] | None = None
    ignored: str = ""

    def rename(self, name: str) -> str | None:
        """Our name of a foreign tensor, in the state dict of a `ReIDModel`; None if it has none."""
        for pattern, ours in self.names:
            if match := re.fullmatch(pattern, name):
                return match.expand(ours) if isinstance(ours, str) else ours(match)
        return None


@dataclass(frozen=True)
class Family:
    """A kind of backbone: its network, configuration, variants and checkpoints.

    Attributes:
        name: the `model_type` of its configurations.
        title: name in messages.
        network: (configuration) -> module, (B, 3, H, W) -> (B, C, h, w), or tokens (B, N, C), with `out_channels`, C.
            For pooling and side networks that read earlier maps it also has `stages(pixel_values)`, `stage_channels`
            and `stage_reductions`, and `gives`, a class attribute or property, says so: `KINDS` of `parts.py`, by
            default ("map",). Where its widths can change it has `width_groups(groups)` (see `WidthGroups`).
        config: class of the configurations; None if transformers has it.
        variants: named configurations.
        width: how its width is read and changed; None if it has no single width.
        foreign: how the checkpoints of other libraries are read; None if there are none.
        citation: BibTeX of the publication.
        strided: whether `network` also takes `last_stride` and `stride1_stage` (see `ReIDConfig`).
        fixes_size: (configuration) -> whether the network only takes images of one size.
        set_size: (configuration, (height, width)) -> None; tells a network of a fixed size which.
        vector_fields: fields of the configuration that change an embedding without changing a weight.
        from_name: (name, (height, width)) -> fields of a `ReIDConfig`, for a library whose models are all variants,
            "PREFIX/NAME".
        prefix: of those names.
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
        """The file that defines its configuration and network, which travels with every checkpoint.

        Raises:
            ValueError: for a family that is defined in a notebook or a script.
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

    The last statement of a family's file: `NAME = register(Family(...))`. A family of the package also has a line in
    `backbones.py`. One from outside is registered when its file is imported, and the file travels with its checkpoints.

    Raises:
        ValueError: if another file has registered the name, or a variant's, or the file could not travel.
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
    """Code of a family outside this package as saved with checkpoints: imports of this folder become relative.

    Raises:
        ValueError: if it imports anything else of the package.
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
    """Whether a file of our folder can be imported by a family: it does not itself import the list of the families."""
    file = Path(__file__).with_name(f"{name}.py")
    if name == "backbones" or not file.is_file():
        return False
    return all(map(_is_below, re.findall(r"^\s*from \.(\w+) import", file.read_text(encoding="utf-8"), re.MULTILINE)))


def scale_channels(channels: Sequence[int], old: int, new: int) -> list[int]:
    """All channels times new / old.

    Raises:
        ValueError: if one would not come out whole; the nearest width that does is named.
    """
    if any(value * new % old for value in channels):
        legal = [width for width in range(1, old + 1) if not any(value * width % old for value in channels)]
        near = min(legal, key=lambda width: abs(width - new))
        raise ValueError(f"width {new} gives stages of broken channel numbers; the nearest that does not is {near}")
    return [value * new // old for value in channels]
