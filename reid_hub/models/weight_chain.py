"""Weight chains: a teacher's clustered weights, which expand into students of any width."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .checkpoint_reid import CheckpointMixin
from .configuration_reid import ReIDConfig
from .image_processing_reid import ReIDImageProcessor
from .modeling_reid import ReIDModel
from .tensor_tree import TensorTree
from .width_groups import match_widths
from .width_scale import at_width, student_of
from .width_slots import Decoder, Slots, allocate


@strict
class WeightChainConfig(PreTrainedConfig):
    """Configuration of a weight chain.

    Args:
        teacher_config: configuration of the teacher, which sets the width of the chain's columns and vectors.
        student_config: configuration of the narrowest student, which sets the number of the chain's rows.
        teacher_fingerprint: fingerprint of the teacher that the tables were computed from.
        clustering, distance: how the rows were clustered ("ward", "random", "inverse"; "euclidean", "cosine").
        seed: random seed of "random" clusters.
        refinement: how the chain was refined; None if it was only clustered.
    """

    model_type = "reid_weight_chain"
    teacher_config: dict | PreTrainedConfig | None = None
    student_config: dict | PreTrainedConfig | None = None
    teacher_fingerprint: str | None = None
    clustering: str = "ward"
    distance: str = "euclidean"
    seed: int = 0
    refinement: dict | None = None

    def __post_init__(self, **kwargs):
        self.teacher_config = _reid_config(self.teacher_config)
        self.student_config = _reid_config(self.student_config)
        super().__post_init__(**kwargs)


def _reid_config(config: dict | PreTrainedConfig | None) -> ReIDConfig:
    if config is None:
        return ReIDConfig()
    return ReIDConfig(**config) if isinstance(config, dict) else config


class WeightChain(CheckpointMixin, PreTrainedModel):
    """One-Shot Knowledge Transfer (arXiv:2511.06016): a chain that expands into students of any width.

    Under the teacher's tensor names, it stores each weight with one row per cluster of the teacher's rows (M, N, ...)
    and each bias, norm and statistic at the teacher's width (N,). For each width group it stores the table of clusters,
    (N,).

    Attributes:
        groups: the teacher's width groups.
        links: the chain's tensors; `links.tensors()` returns them by name.
    """

    config: WeightChainConfig
    config_class = WeightChainConfig
    base_model_prefix = "chain"
    main_input_name = "pixel_values"
    model_tags = ("person-reid", "weight-chain")
    # Set by the package: (teacher, sizes, distance, clustering, seed) -> tables. In a copy of this file that is shipped
    # with a checkpoint it is None, and the class can only expand.
    clusterer: Callable[..., dict[str, Tensor]] | None = None

    def __init__(self, config: WeightChainConfig):
        super().__init__(config)
        with torch.device("meta"):
            teacher, student = ReIDModel(config.teacher_config), ReIDModel(config.student_config)
        self.groups = teacher.width_groups()
        self.rows = match_widths(self.groups, student.width_groups())
        links = {}
        for name, tensor in teacher.state_dict().items():
            if not tensor.is_floating_point():
                continue  # batch counters
            shape, axes = list(tensor.shape), self.groups.axes.get(name)
            if axes is not None and tensor.ndim > 1:
                shape[0] = sum(self.rows[group] for group in axes.rows)
            links[name] = torch.zeros(shape)
        parameters = {name for name, _ in teacher.named_parameters()}
        self.links = TensorTree(links, parameters.__contains__)
        tables = {name: torch.zeros(group.size, dtype=torch.int64) for name, group in self.groups.groups.items()}
        self.tables = TensorTree({_flat(name): table for name, table in tables.items()}, lambda name: False)
        self.groups.module = None  # the meta models are no longer needed
        self.post_init()

    def _init_weights(self, module):
        """Do nothing: chains are built from a teacher or loaded from a file."""

    @classmethod
    def from_teacher(
        cls,
        teacher: ReIDModel,
        width: int | ReIDConfig,
        *,
        distance: str | None = None,
        clustering: str = "ward",
        seed: int = 0,
    ) -> "WeightChain":
        """Build a chain from a teacher: cluster its rows and store the mean of each cluster.

        Args:
            width: width of the narrowest student (stem channels or ViT width), or its configuration.
            distance: "euclidean" or "cosine" (default: the published one for the architecture).
            clustering: "ward", or one of the paper's ablations, "random" and "inverse".
            seed: random seed of "random".

        Raises:
            ValueError: if the width is not between 1 and the teacher's, or the architecture differs.
            ImportError: if the package is not installed (in a copy of this class shipped with a checkpoint).
        """
        if cls.clusterer is None:
            raise ImportError("clustering a teacher needs the package: pip install reid-hub")
        config = at_width(teacher.config, width) if isinstance(width, int) else width
        options = {"distance": distance or default_distance(teacher), "clustering": clustering, "seed": seed}
        with torch.device("meta"):
            sizes = match_widths(teacher.width_groups(), ReIDModel(config).width_groups())
        return cls.from_tables(teacher, config, cls.clusterer(teacher, sizes, **options), **options)

    @classmethod
    @torch.no_grad()
    def from_tables(
        cls, teacher: ReIDModel, student_config: ReIDConfig, tables: Mapping[str, Tensor], **provenance: Any
    ) -> "WeightChain":
        """Build a chain from given tables: each row is the mean of its cluster, vectors are copied from the teacher.

        Args:
            provenance: fields of the `WeightChainConfig` that describe how the tables were computed.

        Raises:
            ValueError: if a table is missing or unknown, or does not partition the group's channels into as many
                clusters as the student has channels.
        """
        config = WeightChainConfig(
            teacher_config=copy.deepcopy(teacher.config),
            student_config=copy.deepcopy(student_config),
            teacher_fingerprint=teacher.fingerprint(),
            **provenance,
        )
        chain = cls(config).to(teacher.device, teacher.dtype)
        wrong = sorted(set(tables) ^ set(chain.groups.groups))
        if wrong:
            raise ValueError(f"there must be one table per width group; missing or unknown: {', '.join(wrong[:6])}")
        for name, table in tables.items():
            chain.table(name).copy_(_partition(name, torch.as_tensor(table), chain))
        means, state = chain.average_rows(teacher.state_dict()), teacher.state_dict()
        for name, link in chain.links.tensors().items():
            link.copy_(means.get(name, state[name]))
        return chain.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a chain and check its tables.

        Raises:
            ValueError: if the file is damaged or does not match its configuration, or a table is not a partition.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        chain = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in chain.groups.groups:
            _partition(name, chain.table(name), chain)
        return loaded

    def table(self, group: str) -> Tensor:
        """(N,) cluster of each teacher channel in a group."""
        return self.tables.get_buffer(_flat(group))

    def row_index(self, name: str) -> Tensor:
        """(N,) chain row of each teacher row of a weight; concatenated if the rows span several groups."""
        parts, start = [], 0
        for group in self.groups.axes[name].rows:
            parts.append(self.table(group) + start)
            start += self.rows[group]
        return torch.cat(parts)

    def average_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Average the rows in each cluster, (N, ...) -> (M, ...), for all weights with width groups."""
        means = {}
        for name, axes in self.groups.axes.items():
            if tensors[name].ndim > 1:
                index, rows = self.row_index(name), sum(self.rows[group] for group in axes.rows)
                total = tensors[name].new_zeros(rows, *tensors[name].shape[1:]).index_add(0, index, tensors[name])
                sizes = torch.bincount(index, minlength=rows).to(total)
                means[name] = total / sizes.view(-1, *[1] * (total.ndim - 1))
        return means

    def slots(self, sizes: Mapping[str, int] | None = None) -> dict[str, Slots]:
        """Slots of each group of a student with these widths (default: the narrowest student).

        Raises:
            ValueError: if a width is out of range; the message names the group and its range.
        """
        slots = {}
        for name, group in self.groups.groups.items():
            width = self.rows[name] if sizes is None else sizes[name]
            try:
                slots[name] = allocate(self.table(name).cpu(), width, group.blocks)
            except ValueError as error:
                raise ValueError(f"{name}: {error}; choose a wider or narrower student, or another chain") from None
        return slots

    def expand(
        self,
        student: int | str | ReIDConfig | None = None,
        *,
        statistics: bool = True,
        rescale_queries: bool = False,
    ) -> ReIDModel:
        """Expand into a student of any width between the chain's and the teacher's, without data or training.

        Args:
            student: a width, the name of a variant, or a configuration (default: the narrowest student).
            statistics: transfer the averaged batch norm statistics and the neck. False is the published method; its
                students must be trained before they can be evaluated.
            rescale_queries: preserve the attention of merged channels, see `Decoder`; not part of the published method.

        Raises:
            ValueError: if the architecture or depth differs, or a width is out of range; the message names the range.
        """
        config = copy.deepcopy(self.student(student))
        config.lineage = self.config.teacher_config.lineage
        model = ReIDModel(config).to(self.device, self.dtype)
        sizes = match_widths(self.groups, model.width_groups())
        decoder = Decoder(self.groups, self.slots(sizes), rescale_queries=rescale_queries)
        with torch.no_grad():
            decoded, state = decoder(self.links.tensors()), model.state_dict()
        if not statistics:
            decoded = {name: tensor for name, tensor in decoded.items() if not is_fitted(name)}
        # An embedding layer or neck that the teacher lacks keeps its initialisation.
        decoded = {name: tensor for name, tensor in decoded.items() if name in state or name.startswith("backbone.")}
        misshaped = [name for name, tensor in decoded.items() if state[name].shape != tensor.shape]
        if misshaped:
            raise ValueError(
                f"{misshaped[0]} is {tuple(state[misshaped[0]].shape)} in the student and in no width group; it must "
                f"be as the teacher's, {tuple(decoded[misshaped[0]].shape)}: take a student of the same embedding width"
            )
        model.load_state_dict({**state, **decoded})
        return model.eval()

    def student(self, student: int | str | ReIDConfig | None = None) -> ReIDConfig:
        """Configuration of a student: the teacher's, at the width of `student` (see `expand`).

        Raises:
            ValueError: for an unknown variant or an invalid width.
        """
        if student is None:
            return copy.deepcopy(self.config.student_config)
        return student_of(self.config.teacher_config, student)

    def write_companions(self, folder) -> dict[str, Any]:
        """Write the students' image processor; no files for sentence-transformers, which cannot embed with a chain."""
        ReIDImageProcessor.from_config(self.config.student_config).save_pretrained(folder)
        return {}

    def sizes_of(self, student: int | str | ReIDConfig) -> dict[str, int]:
        """Widths of all groups of a student, without creating its weights."""
        config = self.student(student)
        with torch.device("meta"):
            return match_widths(self.groups, ReIDModel(config).width_groups())

    def forward(self, *args, **kwargs):
        raise TypeError("a weight chain cannot be called: chain.expand(width) gives a model that embeds images")


def is_fitted(name: str) -> bool:
    """Whether a tensor belongs to running statistics or the neck, which the published method does not transfer."""
    return name.startswith("neck.") or name.endswith(("running_mean", "running_var"))


def default_distance(teacher: ReIDModel) -> str:
    """The published distance between rows: "cosine" for ViTs, "euclidean" otherwise."""
    return getattr(teacher.backbone, "row_distance", "euclidean")


def _partition(name: str, table: Tensor, chain: WeightChain) -> Tensor:
    group, clusters = chain.groups.groups[name], chain.rows[name]
    if table.shape != (group.size,) or table.is_floating_point():
        raise ValueError(
            f"the table of {name} must name a cluster for {group.size} channels, got {tuple(table.shape)} {table.dtype}"
        )
    block, rows = group.size // group.blocks, clusters // group.blocks
    for b, part in enumerate(table.view(group.blocks, block)):
        if not torch.equal(part.unique().cpu(), torch.arange(b * rows, (b + 1) * rows)):
            raise ValueError(
                f"the table of {name} is no partition: channels {b * block} to {(b + 1) * block - 1} must be in the "
                f"clusters {b * rows} to {(b + 1) * rows - 1}, each used; cluster the teacher again"
            )
    return table


def _flat(name: str) -> str:
    return name.replace(".", "/")
