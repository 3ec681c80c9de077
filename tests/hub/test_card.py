"""The model card says what config.json and results.json say, in a form that the Hub accepts."""

import ast
import copy
import json
import re

import pytest
from huggingface_hub import ModelCard

from reid_hub.data import DATASETS
from reid_hub.evaluation.results import Results
from reid_hub.hub.card import read_config, render_card, write_card
from reid_hub.hub.citations import CITATIONS, cite
from reid_hub.models import ReIDConfig
from reid_hub.models.families import FAMILIES

from .minihub_store import card_errors

RESULTS = {
    "model": "res50-s1.bot-market1501",
    "dataset": {
        "name": "market1501",
        "split": "test",
        "data_dir_counts": {"query": {"images": 3368}, "gallery": {"images": 15913}},
    },
    "protocol": {"metric": "cosine", "flip": True, "rerank": None, "num_valid_queries": 3367},
    "metrics": {"mAP": 0.81234, "rank1": 0.91287, "rank5": 0.96111, "rank10": 0.98765, "mINP": 0.50449},
    "cost": {"parameters": 374408, "macs": 123456789, "bytes_per_vector": 1024, "latency_ms": 3.256,
             "latency_device": "a machine"},
    "training": {"method": "supervised", "recipe": "bot-cnn", "epochs": 120.0, "changes": {}, "seed": 1234,
                 "dataset": "market1501"},
    "command": "reid-hub evaluate runs/a --dataset market1501",
    "versions": {"python": "3.11.7", "torch": "2.15.0", "transformers": "5.23.0", "reid_hub": "0.1.0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> dict:
    return ReIDConfig.from_variant("res50-s1").to_dict()


def results(**changes) -> dict:
    """RESULTS with parts of its mappings replaced."""
    changed = copy.deepcopy(RESULTS)
    for name, value in changes.items():
        changed[name] = {**changed[name], **value} if isinstance(value, dict) else value
    return changed


def card_of(config: dict, content: dict | list[dict] | None = None, **options) -> str:
    """The card of what config.json and results.json hold."""
    parts = content if isinstance(content, list) else [] if content is None else [content]
    return render_card(read_config(config), [Results.from_dict(part) for part in parts], **options)


def body(card: str) -> str:
    return card.split("---\n", 2)[2]


def row(card: str, *cells: str) -> str:
    """The one table row that has all these cells."""
    rows = [line for line in body(card).splitlines() if {*cells} <= {cell.strip() for cell in line.split("|")}]
    assert len(rows) == 1, f"{cells} found in {len(rows)} rows"
    return rows[0]


def test_percent_in_print_fractions_in_metadata(config):
    card = card_of(config, RESULTS)
    assert row(card, "Market-1501", "81.2", "91.3", "96.1", "98.8", "50.4", "cosine, flip-averaged")
    data = ModelCard(card).data
    assert {entry.metric_type: entry.metric_value for entry in data.eval_results} == RESULTS["metrics"]
    assert {(entry.dataset_type, entry.dataset_split) for entry in data.eval_results} == {("market1501", "test")}
    assert data.model_name == RESULTS["model"]


def test_what_was_recorded_is_shown(config):
    card = card_of(config, RESULTS)
    for cells in (
        ("MACs per image", "0.123 G"),
        ("Bytes per vector", "1,024"),
        ("Latency, one image", "3.26 ms"),
        ("Latency device", "a machine"),
        ("Seed", "1234"),
        ("Epochs", "120"),
        ("Recipe", "bot-cnn"),
        ("Num valid queries", "3,367"),
        ("Re-ranked", "no"),
        ("Data found", "query: images 3,368; gallery: images 15,913"),
        ("Versions", "python 3.11.7, torch 2.15.0, transformers 5.23.0, reid hub 0.1.0"),
        ("Input", "256 x 128 pixels (height x width)"),
        ("Embedding", "256 numbers"),
    ):
        assert row(card, *cells)
    assert "```bash\nreid-hub evaluate runs/a --dataset market1501\n```" in card
    assert "wrong person for 8.7 % of the queries" in card
    assert "not been evaluated" not in card
    assert "Changes" not in card


def test_the_parameters_are_the_models_own(config):
    # specs of the paper: 374,152 in the backbone; the BNNeck scales 256 values
    assert row(card_of(config), "Parameters", f"{374_152 + 256:,}")


def test_metadata_describes_the_model(config):
    data = ModelCard(card_of(config, results(training={"base_model": "timm/resnet50.a1_in1k"}))).data
    assert (data.pipeline_tag, data.library_name) == ("image-feature-extraction", "transformers")
    assert data.datasets == ["market1501"]
    assert data.base_model == "timm/resnet50.a1_in1k"
    assert "person-reid" in data.tags


def test_a_model_without_results_says_so(config):
    card = card_of(config)
    assert "**This model has not been evaluated.**" in card
    assert ModelCard(card).data.eval_results is None
    assert not re.search(r"\d\s*%", card)
    assert "Unknown: this model has not been evaluated." in card
    assert "No licence has been chosen" in card


def test_several_evaluations_stay_apart(config):
    reranked = results(protocol={"rerank": {"method": "k-reciprocal", "k1": 20}}, metrics={"mAP": 0.9})
    foreign = results(dataset={"name": "my-own-set"}, metrics={"mAP": 0.1})
    card = card_of(config, [RESULTS, reranked, foreign])
    assert row(card, "Market-1501", "90.0", "cosine, flip-averaged, re-ranked")
    assert row(card, "my-own-set", "10.0")
    assert "method k-reciprocal, k1 20" in card
    entries = [entry for entry in ModelCard(card).data.eval_results if entry.metric_type == "mAP"]
    assert [entry.metric_value for entry in entries] == [0.81234, 0.9, 0.1]
    assert len({entry.unique_identifier for entry in entries}) == 3
    assert row(card, "my-own-set", "evaluation", "not known to reid_hub: ask whoever holds the data")


def test_missing_cameras_are_told(config):
    note = "No test image has a camera id: the figures are higher than those of a cross-camera protocol."
    assert f"> {note}" in card_of(config, results(dataset={"camera_note": note}))
    assert "> " not in body(card_of(config, RESULTS))


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_brings_its_terms(config, name):
    card = card_of(config, results(training={"dataset": name}, dataset={"name": name}))
    spec = DATASETS[name]
    assert f"| training | {spec.licence} |" in card
    assert spec.notice in card
    for entry in re.findall(r"@\w+\{[^,]+,", spec.citation):
        assert card.count(entry) == 1
    license = {"synthetic": "apache-2.0", "shapes": "apache-2.0"}.get(name, None if spec.redistributable else "other")
    assert ModelCard(card).data.license == license
    assert card_errors(card) == []


def test_a_backbone_that_nothing_was_measured_with_is_no_person_re_identification_model(config):
    about = {"method": "kdep", "recipe": "kdep", "dataset": "pictures"}
    backbone = results(training=about, dataset={"name": "pictures"}, metrics={}) | {"metrics": {}, "protocol": {}}
    card = card_of(config, backbone | {"task": "pretraining"}, repo_id="alice/backbone")
    assert "person" not in body(card).partition("## How to use")[0]
    assert "reid-hub classify --model alice/backbone" in card
    assert "gallery" not in card
    assert "he2022kdep" in card
    assert "person-reid" not in ModelCard(card).data.tags
    assert ModelCard(card).data.eval_results is None
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        ast.parse(block)
    assert card_errors(card) == []


def test_what_start_and_teachers_learned_from_counts_as_well(config):
    """Weights that go on from images with terms are bound by them, whatever they are trained on last."""
    steps = [
        {"method": "kdep", "recipe": "kdep-people", "epochs": 90, "dataset": "synthetic", "init": "random",
         "teachers": ["big"], "teachers_saw": ["market1501"]},
        {"method": "supervised", "recipe": "bot", "epochs": 2, "dataset": "synthetic", "init": "backbone"},
    ]  # fmt: skip
    drawn = results(training={"dataset": "synthetic"}, dataset={"name": "synthetic"})
    alone, card = card_of(config, drawn), card_of({**config, "lineage": steps}, drawn)
    assert (ModelCard(alone).data.license, ModelCard(card).data.license) == ("apache-2.0", "other")
    assert ModelCard(card).data.datasets == ["synthetic", "market1501"]
    assert f"| training | {DATASETS['market1501'].licence} |" in card
    assert "he2022kdep" in card
    assert "he2022kdep" not in alone
    assert "must not be expected to recognise one" not in card
    assert (
        "1. method kdep, recipe kdep-people, epochs 90, dataset synthetic, init random, teachers big, teachers saw "
        "market1501\n2. method supervised, recipe bot, epochs 2, dataset synthetic, init backbone\n"
    ) in card
    assert "oldest first" not in alone
    unmeasured = card_of({**config, "lineage": steps[:1]})
    assert "1. method kdep" in unmeasured
    assert "not recorded here" not in unmeasured
    assert card_errors(card) == []


def test_the_licence_can_be_chosen(config):
    card = card_of(config, RESULTS, license="cc-by-nc-4.0")
    assert ModelCard(card).data.license == "cc-by-nc-4.0"
    assert "The weights are under cc-by-nc-4.0." in card


@pytest.mark.parametrize("content", [None, RESULTS, [RESULTS, RESULTS]], ids=["none", "one", "two"])
def test_the_hub_accepts_the_metadata(config, content):
    assert card_errors(card_of(config, content)) == []


def test_limits_are_stated_plainly(config):
    for card in (card_of(config), card_of(config, RESULTS)):
        for phrase in (
            "Not to be used",
            "legal basis",
            "**Bias.** Not measured",
            "never evidence",
            "DukeMTMC was withdrawn",
        ):
            assert phrase in card.replace("\n", " ")
    drawn = card_of(config, results(training={"dataset": "synthetic"}))
    assert "must not be expected to recognise one" in drawn


def test_examples_are_python_and_name_the_repository(config):
    card = card_of(config, repo_id="alice/reid")
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert '"alice/reid"' in block
        ast.parse(block)


def test_citations_of_what_was_used(config):
    card = card_of(config, RESULTS)
    for key in ("luo2019bag", "he2016deep", "zheng2015scalable"):
        assert card.count(f"{{{key},") == 1
    assert "zhong2017rerank" not in card
    assert "zhong2017rerank" in card_of(config, results(protocol={"rerank": {"k1": 20}}))
    assert "zhou2019osnet" in card_of(ReIDConfig.from_variant("osnet-x0.25").to_dict())
    assert "li2025oskt" in card_of(config, results(training={"method": "oskt.refine"}))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.variants])
def test_every_family_with_variants_has_something_to_cite(name):
    assert len(cite([name])) == 1


def test_citations_are_whole_entries():
    citing = [name for name, family in FAMILIES.items() if family.citation]
    entries = cite([*citing, *CITATIONS])
    assert len(entries) == len(citing) + len(CITATIONS)
    for entry in entries:
        assert re.match(r"@\w+\{\w+,\n", entry)
        assert entry.count("{") == entry.count("}")
        assert {"title", "author", "year"} <= set(re.findall(r"(\w+)\s*=", entry))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"mAP": 81.2}}, "fraction"),
        ({"command": ""}, "command"),
        ({"cost": {"macs": float("nan")}}, "macs"),
    ],
)
def test_results_that_cannot_be_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        card_of(config, results(**change))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "index.add(model.encode(gallery), gallery)"),
        ({"quantization": "int8"}, 'codec="int8")'),
        ({"quantization": "int8", "quantization_granularity": "dimension"}, "scale=model.int8_scale(None))"),
        ({"architectures": ["ReIDForImageClassification"], "num_labels": 3}, 'pipeline("image-classification"'),
    ],
)
def test_examples_are_those_of_the_kind_of_model(changes, words):
    compressed = {"compression": "low_rank", "compressed_dim": 16} if "quantization" in changes else {}
    card = card_of(ReIDConfig.from_variant("res50-s1", **compressed, **changes).to_dict())
    first = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    ast.parse(first)
    assert words in first
    assert card_errors(card) == []


def test_results_of_another_kind_of_model_are_refused(config):
    with pytest.raises(ValueError, match="of another kind of model"):
        card_of({**config, "architectures": ["ReIDForImageClassification"]}, RESULTS)


def test_write_card_reads_the_folder(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        write_card(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == card_of(config)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    card = write_card(tmp_path, repo_id="alice/reid")
    assert card.read_text() == card_of(config, RESULTS, repo_id="alice/reid")


def test_a_card_that_cannot_be_written_leaves_the_old_one(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = write_card(tmp_path).read_text()
    (tmp_path / "results.json").write_text(json.dumps(RESULTS)[:-100])
    with pytest.raises(ValueError, match=r"results\.json is not valid JSON"):
        write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "results.json"]


def test_a_card_is_replaced_not_overwritten(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with write_card(tmp_path).open() as old:
        (tmp_path / "results.json").write_text(json.dumps(RESULTS))
        new = write_card(tmp_path).read_text()
        assert old.read() == card_of(config) != new
