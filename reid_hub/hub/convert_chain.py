"""Convert weight chains of the OSKT release: label tables in JSON, and the checkpoint of a refinement."""

import json
from pathlib import Path

import torch
from torch import Tensor

from reid_hub.errors import MissingError, ReIDError
from reid_hub.hub.convert import foreign_of, load_foreign, read_checkpoint
from reid_hub.models import ReIDConfig, ReIDModel, WeightChain
from reid_hub.models.width_scale import at_width

CHAIN = "GeneChain."
# Not of the teacher: the chain's rows, copies of them inside the blocks, and the head of the narrowest student.
NOT_TEACHER = (CHAIN, "GeneNet_")


def convert_chain(
    checkpoint: str | Path, tables: str | Path, variant: str, out: str | Path, **overrides
) -> WeightChain:
    """Convert a released chain of a ResNet and save it to `out`, and the refined teacher to `out`/teacher.

    Args:
        checkpoint: checkpoint of the refinement, with the refined teacher and the chain's rows.
        tables: JSON file, {"base.layer1.0.conv1": [label of each filter of the teacher], ...}.
        variant: variant of the teacher.
        overrides: fields of the teacher's `ReIDConfig`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, a tensor or table is missing or of another width, or tables of a residual
            stream differ; nothing is written in that case.
    """
    tensors = read_checkpoint(checkpoint)
    released = {name.removeprefix(CHAIN): tensor for name, tensor in tensors.items() if name.startswith(CHAIN)}
    # The 0/1 matrices (trans_*) follow from the tables. Gains and offsets are those of the teacher: the copies in here
    # are never read and outdated. The running statistics are those of the narrowest student.
    rows = {name: tensor for name, tensor in released.items() if "trans_" not in name and _is_read(name)}
    if not rows:
        raise ReIDError(f"{checkpoint} holds no {CHAIN}* tensors: give the checkpoint of a refinement")
    width = len(rows["conv1.weight"]) if "conv1.weight" in rows else 0
    own = {n: t for n, t in tensors.items() if not n.startswith(NOT_TEACHER) and "Gene" not in n}
    teacher = ReIDModel(ReIDConfig.from_variant(variant, **overrides)).eval()
    if teacher.config.backbone_config.model_type != "resnet":
        raise ReIDError(f"released chains are of ResNets, and {variant} is not a ResNet")
    rename = foreign_of(teacher.config).rename
    load_foreign(teacher, own)
    groups = teacher.width_groups()
    labels = _read_tables(Path(tables), {name: axes.rows[0] for name, axes in groups.axes.items()}, rename)
    missing = sorted(set(groups.groups) - set(labels))
    if missing:
        raise ReIDError(f"{tables} has no table for {', '.join(missing[:4])}: it is for another architecture or depth")
    chain = WeightChain.from_tables(teacher, at_width(teacher.config, width), labels)
    links = chain.links.tensors()
    for name, tensor in rows.items():
        link = links.get(rename(name) or "")
        if link is None or link.shape != tensor.shape:
            due = "nothing of that name" if link is None else tuple(link.shape)
            raise ReIDError(f"{CHAIN}{name} is {tuple(tensor.shape)}, a chain of width {width} has {due}")
        with torch.no_grad():
            link.copy_(tensor)
    absent = [n for n, link in links.items() if link.ndim == 4 and n not in {rename(name) for name in rows}]
    if absent:
        raise ReIDError(f"{checkpoint} lacks the chain's rows of {', '.join(absent[:4])}")
    chain.config.refinement = {"source": Path(checkpoint).name}
    chain.save_pretrained(out)
    teacher.save_pretrained(Path(out) / "teacher")
    return chain


def _is_read(name: str) -> bool:
    """Whether a tensor of the released chain is used: filters, and statistics of the norms after them."""
    is_norm = ".bn" in f".{name}" or "downsample.1" in name
    return name.endswith(("running_mean", "running_var")) if is_norm else name.endswith("weight")


def _read_tables(path: Path, group_of: dict[str, str], rename) -> dict[str, Tensor]:
    """Tables by group; all tables of a residual stream must be equal."""
    if not path.is_file():
        raise MissingError(f"no tables {path}: give the JSON file released with the chain")
    try:
        content = {
            str(name): torch.tensor(labels, dtype=torch.int64) for name, labels in json.loads(path.read_text()).items()
        }
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ReIDError(f"{path} is not a JSON object of label lists: {error}") from None
    found: dict[str, Tensor] = {}
    for name, labels in content.items():
        leaf = name.removeprefix("base.")
        leaf = f"{leaf}.0" if leaf.endswith("downsample") else leaf
        group = group_of.get(rename(f"{leaf}.weight") or "")
        if group is None:
            raise ReIDError(f"{path} has a table for {name}, which the teacher does not have")
        if group in found and not torch.equal(found[group], labels):
            raise ReIDError(f"{path}: {name} shares its channels with others of {group}, but has another table")
        found[group] = labels
    return found
