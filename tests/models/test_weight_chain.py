"""A weight chain against the network that it stands for, in float64: OSKT's identities (its spec, section 10)."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.models.weight_chain import WeightChainConfig
from reid_hub.models.width_groups import WidthGroups
from reid_hub.models.width_scale import at_width, width_of

SIZE = (64, 32)


def small(layer_type: str = "bottleneck", width: int = 8, depths=(1, 2), **fields) -> ReIDConfig:
    """A narrow ResNet; `width` channels in the stem."""
    expansion = 4 if layer_type == "bottleneck" else 1
    backbone = {
        "model_type": "resnet", "embedding_size": width, "layer_type": layer_type, "depths": list(depths),
        "hidden_sizes": [expansion * width * 2**stage for stage in range(len(depths))],
    }  # fmt: skip
    return ReIDConfig(backbone_config=backbone, last_stride=1, image_size=SIZE, **fields)


def vit(**fields) -> ReIDConfig:
    backbone = {"model_type": "reid_part_vit", "embed_dim": 24, "width": 16, "depth": 2, "heads": 2, "drop_path": 0.0}
    return ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=SIZE, **fields)


CHANNELS = [32, 128, 128, 128]
# Cross attention is a softmax over channels: merged ones change it, at every width but the full one.
GENOTYPE = [["gate", "gate"], ["exchange", "gate"], ["none", "gate"], ["gate", "none"], ["gate", "exchange"]]
MSINET = {"model_type": "reid_msinet", "channels": CHANNELS}

# Teacher's configuration, and the width of its chain.
TEACHERS = {
    "bottleneck": (small("bottleneck"), 3),
    "basic": (small("basic"), 3),
    "embedding": (small("basic", head="linear", embedding_dim=16), 3),
    "osnet": (
        ReIDConfig.from_variant(
            "osnet-x0.25", backbone_config={"model_type": "reid_osnet", "channels": CHANNELS, "blocks": 1},
            embedding_dim=128, image_size=SIZE,
        ),
        16,
    ),
    "msinet": (
        ReIDConfig.from_variant(
            "msinet-x0.25", image_size=SIZE,
            backbone_config={**MSINET, "genotype": [*GENOTYPE, ["exchange", "none"]]},
        ),
        16,
    ),
    "cross-attention": (ReIDConfig.from_variant("msinet-x0.25", image_size=SIZE, backbone_config=MSINET), 16),
    "vit": (vit(), 8),
}  # fmt: skip
# Those whose merged channels compute exactly what the single ones did, at every width.
EXACT = ["bottleneck", "basic", "embedding", "osnet", "msinet"]


def teacher_of(name: str) -> ReIDModel:
    """A teacher in float64 whose statistics, gains and offsets all differ."""
    torch.manual_seed(0)
    model = ReIDModel(TEACHERS[name][0]).double()
    state = model.state_dict()
    for key, tensor in state.items():
        if key.endswith("gamma"):
            state[key] = torch.full_like(tensor, 0.7)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            state[key] = torch.rand_like(tensor) + (0.5 if key.endswith(("weight", "var")) else -0.5)
    model.load_state_dict(state)
    return model.eval()


def chain_of(name: str, teacher: ReIDModel | None = None, clustering: str = "random") -> WeightChain:
    """Random tables make clusters of unequal sizes."""
    teacher = teacher or teacher_of(name)
    chain = WeightChain.from_teacher(teacher, TEACHERS[name][1], clustering=clustering, seed=3)
    for key, tensor in chain.links.tensors().items():
        assert tensor.dtype == torch.float64, key
    return chain


def alike(model: ReIDModel, chain: WeightChain, rows: bool = True, vectors: bool = True) -> ReIDModel:
    """The model with the rows, and the vectors, of each cluster replaced by their mean."""
    twin, state = copy.deepcopy(model), model.state_dict()
    for name, axes in chain.groups.axes.items():
        if rows if state[name].ndim > 1 else vectors:
            start = 0
            for group in axes.rows:
                table = chain.table(group)
                part = state[name][start : start + len(table)]
                for g in table.unique():
                    part[table == g] = part[table == g].mean(0)
                start += len(table)
    twin.load_state_dict(state)
    return twin


def pixels(batch: int = 6) -> torch.Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def widths(name: str) -> list[int]:
    """The chain's width, one or two between, and the teacher's."""
    config, narrow = TEACHERS[name]
    full = width_of(config)
    heads = getattr(config.backbone_config, "heads", 1)
    return sorted({narrow, (narrow + full) // 2 // heads * heads, full - heads, full})


def last_group(chain: WeightChain) -> str:
    """The group of the channels of the feature map."""
    model = chain.expand()
    return model.backbone.width_groups(WidthGroups(model).inside("backbone"))[-1]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", EXACT)
def test_equal_rows_give_the_teacher_at_every_width(name, training):
    """Rows and vectors equal within clusters: a student of any width computes the teacher's channels, once each."""
    teacher = alike(teacher_of(name), chain_of(name))
    chain = chain_of(name, teacher)
    teacher.train(training)
    with torch.no_grad():
        expected = teacher(pixels())
    # The forward in training mode moved the statistics, so the chain was made before it.
    for width in widths(name):
        student = chain.expand(width).train(training)
        with torch.no_grad():
            found = student(pixels())
        last = last_group(chain)
        slot = chain.slots(chain.sizes_of(width))[last].slot
        torch.testing.assert_close(found.feature_map[:, slot], expected.feature_map, rtol=1e-9, atol=1e-10)
        if name != "msinet":  # whose vector runs through two groups
            group = "embedding" if teacher.config.embedding["name"] == "linear" else last
            slot = chain.slots(chain.sizes_of(width))[group].slot
            torch.testing.assert_close(found.embeddings[:, slot], expected.embeddings, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["bottleneck", "basic"])
def test_equal_rows_alone_are_enough_at_full_width_only(name):
    teacher = alike(teacher_of(name), chain_of(name), vectors=False).train()
    chain = chain_of(name, teacher)
    with torch.no_grad():
        expected = copy.deepcopy(teacher)(pixels()).feature_map
    errors = {}
    for width in (widths(name)[0], widths(name)[-1]):
        student = chain.expand(width).train()
        with torch.no_grad():
            found = student(pixels()).feature_map[:, chain.slots(chain.sizes_of(width))[last_group(chain)].slot]
        errors[width] = float((found - expected).abs().max() / expected.abs().max())
    narrow, full = errors.values()
    assert full < 1e-10
    assert narrow > 0.05


@pytest.mark.parametrize("name", TEACHERS)
def test_full_width_is_the_teacher_with_its_rows_replaced(name):
    teacher, chain = teacher_of(name), chain_of(name)
    expected = alike(teacher, chain, vectors=False).eval()(pixels()).feature_map
    student = chain.expand(widths(name)[-1])
    slot = chain.slots(chain.sizes_of(widths(name)[-1]))[last_group(chain)].slot
    found = student(pixels()).feature_map
    found = found[..., slot] if name == "vit" else found[:, slot]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [*EXACT, "vit"])
def test_no_weight_is_lost_at_any_width(name):
    """The columns of a student's row add up to those of its chain row, and vectors average to the narrowest's."""
    chain = chain_of(name)
    links, narrow = chain.links.tensors(), chain.expand().state_dict()
    for width in widths(name):
        student, slots = chain.expand(width).state_dict(), chain.slots(chain.sizes_of(width))
        for tensor_name, axes in chain.groups.axes.items():
            starts = np.cumsum([0, *(chain.rows[group] for group in axes.rows)])[:-1]
            source = torch.cat([slots[g].source + start for g, start in zip(axes.rows, starts.tolist(), strict=True)])
            sizes = torch.cat([slots[g].sizes for g in axes.rows]).double()
            if links[tensor_name].ndim > 1:
                mass = student[tensor_name].sum(1)
                torch.testing.assert_close(mass, links[tensor_name].sum(1)[source], rtol=1e-9, atol=1e-10)
            else:
                rows = int(source.max()) + 1
                total = torch.zeros(rows).double().index_add(0, source, student[tensor_name] * sizes)
                count = torch.zeros(rows).double().index_add(0, source, sizes)
                torch.testing.assert_close(total / count, narrow[tensor_name], rtol=1e-9, atol=1e-10)


def test_attention_of_merged_channels_needs_rescaled_queries():
    """Clusters of two everywhere, equal rows: with queries rescaled the narrow ViT is the teacher, else it is not."""
    config = TEACHERS["vit"][0]
    sizes = {name: group.size for name, group in ReIDModel(config).width_groups().groups.items()}
    tables = {name: torch.arange(size) // 2 for name, size in sizes.items()}
    teacher = teacher_of("vit")
    teacher = alike(teacher, WeightChain.from_tables(teacher, at_width(config, 8), tables))
    chain = WeightChain.from_tables(teacher, at_width(config, 8), tables)
    expected = teacher(pixels()).feature_map
    slot = chain.slots()["residual"].slot
    rescaled = chain.expand(rescale_queries=True)(pixels()).feature_map[..., slot]
    torch.testing.assert_close(rescaled, expected, rtol=1e-9, atol=1e-10)
    published = chain.expand()(pixels()).feature_map[..., slot]
    assert float((published - expected).detach().abs().max()) > 1e-5


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (9, "multiple of its 2 heads, from 2 to the teacher's 16, got 9"),
        (6, "chain's 8 and the teacher's 16, got 6"),
        (18, "teacher's 16, got 18"),
    ],
)
def test_widths_that_a_vit_does_not_have(width, message):
    with pytest.raises(ValueError, match=message):
        chain_of("vit").expand(width)


def test_a_vit_of_another_patch_embedding_is_refused():
    backbone = {**vit().backbone_config.to_dict(), "embed_dim": 32, "width": 8}
    other = ReIDConfig.from_variant("vit-s", backbone_config=backbone, image_size=SIZE)
    with pytest.raises(ValueError, match="in no width group; it must be as the teacher's"):
        chain_of("vit").expand(other)


def test_rows_are_means_of_their_clusters():
    teacher, chain = teacher_of("bottleneck"), chain_of("bottleneck")
    for name, axes in chain.groups.axes.items():
        weight, link = teacher.state_dict()[name], chain.links.tensors()[name]
        if weight.ndim == 1:
            assert torch.equal(link, weight)
            continue
        for g in range(chain.rows[axes.rows[0]]):
            members = [weight[k] for k, label in enumerate(chain.table(axes.rows[0])) if label == g]
            torch.testing.assert_close(link[g], sum(members) / len(members))


def test_statistics_and_neck_are_left_out_on_request():
    chain = chain_of("bottleneck")
    plain, with_statistics = chain.expand(statistics=False).state_dict(), chain.expand().state_dict()
    fresh = ReIDModel(chain.student()).state_dict()
    for name in plain:
        if name.endswith("num_batches_tracked"):
            continue
        if name.startswith("neck.") or name.endswith(("running_mean", "running_var")):
            assert torch.equal(plain[name], fresh[name])
            assert not torch.equal(with_statistics[name], fresh[name])
        else:
            assert torch.equal(plain[name], with_statistics[name])


def test_a_saved_chain_expands_to_the_same_bits(tmp_path):
    torch.manual_seed(0)
    chain = WeightChain.from_teacher(ReIDModel(TEACHERS["bottleneck"][0]), 3)
    chain.save_pretrained(tmp_path / "chain")
    again = AutoModel.from_pretrained(tmp_path / "chain")
    assert again.config.teacher_fingerprint == chain.config.teacher_fingerprint
    for width in (3, 5, 8):
        first, second = chain.expand(width).state_dict(), again.expand(width).state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_chain_travels_without_the_package(tmp_path):
    chain = WeightChain.from_teacher(ReIDModel(TEACHERS["basic"][0]), 3)
    chain.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"weight_chain.py", "width_slots.py", "modeling_reid.py", "README.md", "preprocessor_config.json"} <= files
    assert "any width" in (tmp_path / "README.md").read_text()


def test_published_students_lie_between_chain_and_teacher():
    """Every published student is as wide as its chain or wider, in every layer, and no wider than the teacher."""
    with torch.device("meta"):
        teacher = ReIDModel(ReIDConfig.from_variant("res50")).width_groups().groups
        for student, width in {"s1": 8, "s2": 8, "s3": 16, "s4": 16, "s5": 32, "s6": 32}.items():
            groups = ReIDModel(ReIDConfig.from_variant(f"res50-{student}")).width_groups().groups
            chain = ReIDModel(at_width(ReIDConfig.from_variant("res50"), width)).width_groups().groups
            assert set(groups) == set(chain) == set(teacher)
            assert all(chain[g].size <= groups[g].size <= teacher[g].size for g in groups)


@pytest.mark.parametrize("width", [8, 16, 32])
def test_size_of_the_published_chains(width):
    """(w / 64) of the teacher's 23.455 million convolution weights."""
    with torch.device("meta"):
        config = ReIDConfig.from_variant("res50")
        chain = WeightChain(WeightChainConfig(teacher_config=config, student_config=at_width(config, width)))
    convolutions = sum(link.numel() for link in chain.links.tensors().values() if link.ndim == 4)
    assert convolutions == 23_454_912 * width // 64


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (2, "stem: a width must be between the chain's 3 and the teacher's 8, got 2"),
        (9, "stem: a width must be between the chain's 3 and the teacher's 8, got 9"),
        ("osnet-x0.25", "osnet-x0.25 is a 'reid_osnet' and the teacher a 'resnet'"),
        ("res50-s1", "another architecture or depth"),
        ("res50-s9", "unknown variant 'res50-s9'"),
    ],
)
def test_students_that_the_chain_does_not_have(student, message):
    with pytest.raises(ValueError, match=message):
        chain_of("bottleneck").expand(student)


def test_tables_that_are_no_partitions_are_refused():
    teacher, chain = teacher_of("bottleneck"), chain_of("bottleneck")
    tables = {group: chain.table(group) for group in chain.groups.groups}
    for group, table, message in [
        ("stem", torch.zeros(8, dtype=torch.int64), "the table of stem is no partition"),
        ("stem", torch.arange(8), "the table of stem is no partition"),
        ("stem", torch.tensor([0, 1, 2]), "must name a cluster for 8 channels, got"),
    ]:
        with pytest.raises(ValueError, match=message):
            WeightChain.from_tables(teacher, chain.student(), {**tables, group: table})
    del tables["stem"]
    with pytest.raises(ValueError, match="missing or unknown: stem"):
        WeightChain.from_tables(teacher, chain.student(), tables)


def test_a_damaged_folder_is_refused(tmp_path):
    chain = WeightChain.from_teacher(ReIDModel(TEACHERS["basic"][0]), 3)
    chain.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"the weights of .* are damaged"):
        WeightChain.from_pretrained(tmp_path)
    chain.table("stem")[:] = 0
    chain.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the table of stem is no partition"):
        WeightChain.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        WeightChain.from_pretrained(tmp_path)


def test_a_chain_is_no_network():
    with pytest.raises(TypeError, match=r"chain\.expand"):
        chain_of("basic")(pixels())
