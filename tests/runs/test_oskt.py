"""From a teacher to students of any width, as runs and as commands, on a data set of coloured people."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from reid_hub import ReIDConfig, ReIDModel, WeightChain
from reid_hub.cli import app
from reid_hub.evaluation import measure_cost
from reid_hub.methods.state import read_state
from reid_hub.models.weight_chain import WeightChainConfig
from reid_hub.models.width_scale import at_width
from reid_hub.runs import oskt
from reid_hub.runs.expand import choose_chain, expand_within, legal_widths, parse_amount
from reid_hub.runs.models import open_chain
from reid_hub.runs.refine import chain_widths

TINY = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SHORT = ["--set", "batch_size=8", "--set", "num_instances=2", "--epochs", "2", "--validation", "0"]


def run(*words) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.fixture(scope="module")
def chain(people, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("chain")
    run("refine", *people, *SHORT, "--model", teacher, "--width", "3", "--out", out)
    return out


def test_refining_leaves_chain_teacher_classifiers_results_and_card(chain, teacher):
    opened = open_chain(chain)
    assert opened.config.teacher_fingerprint == ReIDModel.from_pretrained(teacher).fingerprint()
    assert opened.config.refinement["epochs"] == 2
    results = json.loads((chain / "results.json").read_text())
    assert results["model"] == "resnet.chain3"
    student = opened.expand()
    assert results["cost"]["parameters"] == sum(p.numel() for p in student.parameters())
    # Refinement went on from the teacher's classifier, and both ends of the chain have one of their own.
    started, refined, narrow = (read_state(path)["classifier.weight"] for path in (teacher, chain / "teacher", chain))
    assert started.shape == refined.shape == (8, 16)
    assert torch.nn.functional.cosine_similarity(started.flatten(), refined.flatten(), dim=0) > 0.5
    assert narrow.shape == (8, student.embedding_dim) == (8, 6)
    assert ReIDModel.from_pretrained(chain / "teacher").fingerprint() != opened.config.teacher_fingerprint
    card = (chain / "README.md").read_text()
    assert "A weight chain" in card
    assert "li2025oskt" in card


def test_an_interrupted_refinement_resumes_where_it_stopped(people, teacher, chain, tmp_path):
    words = ["refine", *people, *SHORT, "--model", teacher, "--width", "3", "--out", tmp_path]
    run(*words, "--arg", "save_total_limit=9")
    last = max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    run(*words, "--resume")
    assert (tmp_path / "model.safetensors").read_bytes() == (chain / "model.safetensors").read_bytes()


def test_progressive_chains_teach_one_another(people, teacher, tmp_path):
    run(
        "refine",
        *people,
        *SHORT,
        "--model",
        teacher,
        "--width",
        "3",
        "--width",
        "5",
        "--progressive",
        "--out",
        tmp_path,
    )
    wide, narrow = open_chain(tmp_path / "width5"), open_chain(tmp_path / "width3")
    assert wide.config.teacher_fingerprint == ReIDModel.from_pretrained(teacher).fingerprint()
    assert narrow.config.teacher_fingerprint == wide.expand().fingerprint()
    assert legal_widths(narrow) == [3, 4, 5]
    with pytest.raises(ValueError, match="between the chain's 3 and the teacher's 5, got 6"):
        narrow.expand(6)


def test_an_expanded_student_trains_further(people, chain, tmp_path):
    said = run("expand", chain, "--student", "5", "--out", tmp_path / "start")
    assert "multiply-adds" in said
    assert ReIDModel.from_pretrained(tmp_path / "start").config.backbone_config.hidden_sizes == [5, 10]
    said = run("train", *people, *SHORT, "--model", tmp_path / "start", "--out", tmp_path / "out", "--keep-ids", "0.5")
    assert "mAP" in said
    assert json.loads((tmp_path / "out" / "results.json").read_text())["training"]["identities"] == 4
    steps = ReIDModel.from_pretrained(tmp_path / "out").config.lineage
    assert [step["method"] for step in steps] == ["supervised", "oskt", "supervised"]  # teacher, chain, student
    assert {step["dataset"] for step in steps} == {"coloured"}
    assert "li2025oskt" in (tmp_path / "out" / "README.md").read_text()


def test_the_widest_student_within_a_budget(chain):
    opened = open_chain(chain)
    costs = {width: measure_cost(opened.expand(width), repeats=1) for width in legal_widths(opened)}
    assert list(costs) == [3, 4, 5, 6, 7, 8]
    sizes = {width: cost.parameters for width, cost in costs.items()}
    macs = {width: cost.macs + cost.attention_macs for width, cost in costs.items()}
    for width, size in sizes.items():
        for budget, expected in ((size, width), (size - 1, width - 1), (size + 1, width)):
            if expected >= 3:
                found = expand_within(opened, params=budget)
                assert found.config.backbone_config.embedding_size == expected
    assert expand_within(opened, macs=macs[6]).config.backbone_config.embedding_size == 6
    assert expand_within(opened, macs=macs[6], params=sizes[4]).config.backbone_config.embedding_size == 4
    assert expand_within(opened, ms=60_000).config.backbone_config.embedding_size == 8
    with pytest.raises(
        ValueError, match=r"the narrowest student of this chain, width 3, costs .* params instead of 10"
    ):
        expand_within(opened, params=10)
    with pytest.raises(ValueError, match="give at least one budget"):
        expand_within(opened)


def test_amounts_are_read():
    assert [parse_amount(text) for text in ("1500000", "1.5M", "0.2g", "3k", 12)] == [1.5e6, 1.5e6, 2e8, 3e3, 12]
    with pytest.raises(ValueError, match="must read like"):
        parse_amount("1,5 Mio")


def test_each_student_takes_the_widest_chain_that_fits():
    with torch.device("meta"):
        config = ReIDConfig(backbone_config=TINY)
        chains = [
            WeightChain(WeightChainConfig(teacher_config=config, student_config=at_width(config, width)))
            for width in (2, 6, 4)
        ]
    for chain in chains:  # any tables will do, as long as every cluster is used
        for group, size in chain.groups.groups.items():
            chain.tables.register_buffer(group.replace(".", "/"), torch.arange(size.size) % chain.rows[group])
    picked = {
        width: choose_chain(chains, width).config.student_config.backbone_config.embedding_size for width in range(2, 9)
    }
    assert picked == {2: 2, 3: 2, 4: 4, 5: 4, 6: 6, 7: 6, 8: 6}
    with pytest.raises(ValueError, match="none of the 3 chains has a student 1"):
        choose_chain(chains, 1)


def test_published_widths_of_several_chains():
    """OSKT, table C2."""
    assert chain_widths(3) == [8, 16, 32]
    assert chain_widths(4) == [8, 13, 23, 38]
    assert chain_widths(5) == [8, 12, 18, 28, 42]
    assert chain_widths(6) == [8, 11, 16, 23, 32, 45]


@pytest.mark.parametrize("family", oskt.FAMILIES.values(), ids=oskt.FAMILIES)
def test_published_students_fit_their_chains(family):
    """In every layer at least as wide as the chain, and no wider than the teacher."""
    with torch.device("meta"):
        teacher = ReIDConfig.from_variant(family.teacher)
        widest = ReIDModel(teacher).width_groups().groups
        for student, width in family.students.items():
            narrowest = ReIDModel(at_width(teacher, width)).width_groups().groups
            groups = ReIDModel(ReIDConfig.from_variant(student)).width_groups().groups
            assert set(groups) == set(widest)
            for name, group in groups.items():
                assert narrowest[name].size <= group.size <= widest[name].size, name


def test_a_published_scenario_from_beginning_to_end(people, tmp_path, monkeypatch):
    """Teacher, chain and student in one call; a second call repeats only what is asked anew."""
    small = oskt.Family("res18-x0.25", ("demo", "oskt-demo", "demo"), {"res18-x0.25": 8})
    monkeypatch.setitem(oskt.FAMILIES, "res50", small)
    monkeypatch.setitem(oskt.SCENARIOS, "m", oskt.Scenario("market_layout", "market_layout"))
    common = {"epochs": 1, "image_size": (32, 16), "set": {"batch_size": 8}}
    folders = {"market_layout": str(people[3])}
    first = oskt.run_scenario("m", "res18-x0.25", folders, out=tmp_path, common=common)
    assert first.training.method == "oskt"
    made = (tmp_path / "res18-x0.25-market_layout.chain8" / "model.safetensors").stat().st_mtime_ns
    few = oskt.run_scenario("m", "res18-x0.25", folders, out=tmp_path, share=0.5, common=common | {"seed": 3})
    assert few.training.identities == 4
    assert few.training.seed == 3
    assert (tmp_path / "res18-x0.25-market_layout.chain8" / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="needs the folder of market_layout"):
        oskt.run_scenario("m", "res18-x0.25", {}, out=tmp_path)
    with pytest.raises(ValueError, match="epochs was 1 and is 2"):
        oskt.run_scenario("m", "res18-x0.25", folders, out=tmp_path, common=common | {"epochs": 2})


def test_classifiers_of_other_people_are_refused(people, tmp_path):
    """As many identities, but not the same: another seed holds out others."""
    short = [*SHORT[:-2], "--validation", "0.3"]
    torch.manual_seed(0)
    ReIDModel(ReIDConfig(backbone_config=TINY, image_size=(32, 16))).save_pretrained(tmp_path / "start")
    run("train", *people, *short, "--model", tmp_path / "start", "--out", tmp_path / "teacher", "--seed", "0")
    with pytest.raises(ValueError, match="was trained on other identities, here are 6"):
        run(
            "refine",
            *people,
            *short,
            "--model",
            tmp_path / "teacher",
            "--width",
            "4",
            "--out",
            tmp_path / "c",
            "--seed",
            "1",
        )


def test_baselines_from_the_same_teacher(people, teacher, tmp_path):
    run("shrink", teacher, "--student", "4", "--by", "wtsel", "--out", tmp_path / "selected")
    selected, full = ReIDModel.from_pretrained(tmp_path / "selected"), ReIDModel.from_pretrained(teacher)
    name = "backbone.model.embedder.embedder.convolution.weight"
    assert torch.equal(selected.state_dict()[name], full.state_dict()[name][::2])
    said = run(
        "distill", "kdpp", *people, *SHORT, "--teacher", teacher, "--model", tmp_path / "selected",
        "--out", tmp_path / "distilled", "--option", "nd_weight=2.0",
    )  # fmt: skip
    assert ".kdpp on coloured" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["expand", "{teacher}", "--out", "x"], "is no weight chain but a 'reid'"),
        (["expand", "no/such/chain", "--out", "x"], "no checkpoint folder no/such/chain"),
        (["expand", "{chain}", "--student", "9", "--out", "x"], "between the chain's 3 and the teacher's 8, got 9"),
        (["expand", "{chain}", "--student", "4", "--budget-ms", "9", "--out", "x"], "give --student or the budgets"),
        (["expand", "{chain}", "--budget-params", "9", "--out", "x"], "the narrowest student of this chain"),
        (["expand", "{chain}", "--student", "vit-s-s1", "--out", "x"], "only widths may differ"),
        (["refine", "--model", "{teacher}", "--recipe", "bot"], "needs a recipe of the method 'oskt'"),
        (["refine", "--model", "{teacher}", "--width", "4", "--width", "9", "{people}"], "a width from 1 to 8, got 9"),
        (["refine", "--model", "{chain}", "--width", "4", "{people}"], "is a weight chain, no model"),
        (["refine", "--model", "{teacher}", "--width", "4", "{people}", "--epochs", "0"], "epochs must be above 0"),
        (["refine", "--model", "{teacher}", "{people}", "--resume", "--out", "{chain}"], "chain.width was 3 and is 8"),
        (["expand", "{chain}", "--out", "{chain}"], "take the place of its chain"),
        (["expand", "{chain}", "--budget-params", "", "--out", "x"], "an amount must read like"),
        (["expand", "{chain}", "--budget-ms", "nan", "--out", "x"], "above 0 and finite"),
        (["expand", "{damaged}", "--out", "x"], "are damaged"),
        (["refine", "--model", "{teacher}", "--width", "4", "{people}", "--keep-ids", "0.5"], "here are 4"),
        (["train", "--recipe", "oskt", "{people}"], "needs `chain`, and the run has none"),
        (["distill", "kdpp", "--teacher", "{teacher}", "{people}", "--keep-ids", "0.5"], "here are 4"),
    ],
)  # fmt: skip
def test_wrong_input_is_reported_in_one_line(words, message, people, teacher, chain, tmp_path, monkeypatch, complaint):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chain, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoint-*"))
    with (tmp_path / "damaged" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    places = {"{teacher}": [teacher], "{chain}": [chain], "{people}": [*people, *SHORT]}
    places["{damaged}"] = [tmp_path / "damaged"]
    assert message in complaint([part for word in words for part in places.get(word, [word])])
    assert not (tmp_path / "x").exists()
