"""Weight chains of OSKT's own release: label tables in JSON, and the checkpoint of a refinement."""

import json
from pathlib import Path

import torch
from torch import Tensor

from reid_hub.errors import MissingError, ReIDError
from reid_hub.hub.convert import foreign_of, load_foreign, read_checkpoint
from reid_hub.models import ReIDConfig, ReIDModel, WeightChain
from reid_hub.models.width_scale import at_width

CHAIN = "GeneChain."
# Beside the teacher: the chain's rows, the same tensors again inside the blocks, and the narrowest student's head.
NOT_TEACHER = (CHAIN, "GeneNet_")


def convert_chain(
    checkpoint: str | Path, tables: str | Path, variant: str, out: str | Path, **overrides
) -> WeightChain:
    """Write a released chain of a ResNet as one of ours; the refined teacher goes into `out`/teacher.

    Args:
        checkpoint: of the refinement; holds the refined teacher and the chain's rows.
        tables: JSON, {"base.layer1.0.conv1": [label of each of the teacher's filters], ...}.
        variant: of the teacher.
        overrides: fields of the teacher's `ReIDConfig`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file is damaged, a tensor or table is missing or of another width, or tables of one residual
            stream differ; nothing is written then.
    """
    tensors = read_checkpoint(checkpoint)
    released = {name.removeprefix(CHAIN): tensor for name, tensor in tensors.items() if name.startswith(CHAIN)}
    # Its 0/1 matrices (trans_*) follow from the tables; gains and offsets are the teacher's, whose copies in here are
    # never read and lag behind. The statistics are the narrowest student's own.
    rows = {name: tensor for name, tensor in released.items() if "trans_" not in name and _is_read(name)}
    if not rows:
        raise ReIDError(f"{checkpoint} holds no {CHAIN}* tensors: give the checkpoint of a refinement")
    width = len(rows["conv1.weight"]) if "conv1.weight" in rows else 0
    own = {n: t for n, t in tensors.items() if not n.startswith(NOT_TEACHER) and "Gene" not in n}
    teacher = ReIDModel(ReIDConfig.from_variant(variant, **overrides)).eval()
    if teacher.config.backbone_config.model_type != "resnet":
        raise ReIDError(f"released chains are of ResNets, {variant} is none")
    rename = foreign_of(teacher.config).rename
    load_foreign(teacher, own)
    groups = teacher.width_groups()
    labels = _read_tables(Path(tables), {name: axes.rows[0] for name, axes in groups.axes.items()}, rename)
    missing = sorted(set(groups.groups) - set(labels))
    if missing:
        raise ReIDError(f"{tables} has no table for {', '.join(missing[:4])}: it is of another architecture or depth")
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
    """Whether a tensor of the released chain takes part in it: filters, and statistics of the norms behind them."""
    is_norm = ".bn" in f".{name}" or "downsample.1" in name
    return name.endswith(("running_mean", "running_var")) if is_norm else name.endswith("weight")


def _read_tables(path: Path, group_of: dict[str, str], rename) -> dict[str, Tensor]:
    """Tables by group; all tables of a residual stream must be one."""
    if not path.is_file():
        raise MissingError(f"no tables {path}: give the JSON file that lies beside the released chain")
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
