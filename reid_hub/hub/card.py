"""The model card: README.md of a checkpoint, rendered from its config.json and results.json and from nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from reid_hub.data import DATASETS
from reid_hub.errors import MissingError, ReIDError
from reid_hub.evaluation.results import Results
from reid_hub.files import atomic_file
from reid_hub.hub.citations import cite
from reid_hub.hub.folder import read_json
from reid_hub.models import ReIDConfig, ReIDForImageClassification, ReIDModel, WeightChain, WeightChainConfig
from reid_hub.models.width_scale import width_of

TEMPLATE = Path(__file__).with_name("card_template.md")
REPO_ID = "NAMESPACE/NAME"  # stands in the examples until the folder is pushed and has a name
TAGS = [
    "person-reid",
    "person-re-identification",
    "re-identification",
    "image-retrieval",
    "metric-learning",
    "reid-hub",
]
CLASSIFIER_TAGS = ["image-classification", "reid-hub"]
TRUNK_TAGS = ["knowledge-distillation", "pre-training", "backbone", "reid-hub"]
METRICS = {"mAP": "mAP", "rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "mINP": "mINP"}
ACCURACIES = {"top1": "Top-1", "top5": "Top-5", "top1_best": "Best top-1 of the training"}
STEP = ("method", "recipe", "epochs", "dataset", "init", "teachers", "teachers_saw")  # of a lineage, in this order
LABELS = {
    "macs": "MACs per picture", "attention_macs": "MACs of attention", "latency_ms": "Latency, one picture",
    "data_dir_counts": "Data found", "rerank": "Re-ranked", "flip": "Flip-averaged",
}  # fmt: skip


def write_card(folder: str | Path, **options) -> Path:
    """Render `folder`/README.md from its config.json and results.json, if there is one; options as in `render_card`.

    Raises:
        FileNotFoundError: if there is no config.json.
        ValueError: if either file cannot be read as what it should be.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder} has no config.json: give the folder that model.save_pretrained wrote")
    results = folder / "results.json"
    card = render_card(read_json(folder / "config.json"), read_json(results) if results.is_file() else None, **options)
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    return folder / "README.md"


def render_card(
    config: Mapping[str, Any],
    results: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    *,
    repo_id: str = REPO_ID,
    license: str | None = None,
) -> str:
    """A model card with valid Hub metadata, as text.

    Args:
        config: the content of config.json.
        results: the content of results.json: one evaluation, or several of the same model.
        repo_id: where the model will be found, for the examples.
        license: Hub identifier of the weights' licence. By default "apache-2.0" after training on drawn people,
            "other" after training on pictures that may not be passed on, and none if that is for the user to say.

    Raises:
        ValueError: if the configuration is neither a ReIDConfig's nor a weight chain's, or a result is not what
            results are.
    """
    is_chain = config.get("model_type") == WeightChainConfig.model_type
    is_classifier = ReIDForImageClassification.__name__ in (config.get("architectures") or ())
    metrics, tags = (ACCURACIES, CLASSIFIER_TAGS) if is_classifier else (METRICS, TAGS)
    config = (WeightChainConfig if is_chain else ReIDConfig).from_dict(dict(config))
    facts = _chain_facts(config) if is_chain else _facts(config, is_classifier)
    config = config.teacher_config if is_chain else config
    results = [results] if isinstance(results, Mapping) else list(results or [])
    is_trunk = bool(results) and all(result.get("task") == "pretraining" for result in results)
    tags = TRUNK_TAGS if is_trunk else tags
    for result in results:
        Results.from_dict(result)
        if (result.get("task") == "classification") != is_classifier:
            raise ReIDError("the results are of another kind of model than config.json: evaluate this one again")
    measured = [result for result in results if result["metrics"]]
    unnamed = config.variant or "person-reid"
    model_name = results[0]["model"] if results else f"{unnamed}.chain" if is_chain else unnamed
    training = results[0]["training"] if results else {}
    steps = config.lineage or []
    trained_on = list(dict.fromkeys([*_training_sets(training), *datasets_of(steps)]))
    license = license or _license(trained_on)
    data = ModelCardData(
        license=license,
        license_name="training-data-terms" if license == "other" else None,
        library_name="transformers",
        pipeline_tag=None if is_chain else "image-classification" if is_classifier else "image-feature-extraction",
        tags=[*tags, "weight-chain"] if is_chain else tags,
        datasets=trained_on or None,
        base_model=training.get("base_model"),
        model_name=model_name,
        eval_results=list(_eval_results(measured, metrics)) or None,
    )
    used = [*trained_on, *(r["dataset"]["name"] for r in results)]
    names = [config.backbone_config.model_type, config.variant, training.get("method"), training.get("recipe")]
    names += ["oskt"] if is_chain else []
    names += [step.get(key) for step in steps for key in ("method", "recipe")]
    names += ["rerank" for r in results if r["protocol"].get("rerank")]
    card = ModelCard.from_template(
        data,
        template_path=TEMPLATE,
        repo_id=repo_id,
        model_name=model_name,
        facts=facts,
        is_chain=is_chain,
        is_classifier=is_classifier,
        is_trunk=is_trunk,
        is_int8=config.quantization == "int8",
        scale=", scale=model.int8_scale(None)" if config.quantization_granularity == "dimension" else "",
        metric_labels=metrics.values(),
        evaluations=[_evaluation(result, metrics) for result in measured],
        cost=_table(results[0]["cost"]) if results else {},
        training=_table(training),
        steps=[_step(step) for step in steps if len(steps) > 1 or "teachers" in step or not training],
        data_terms=_data_terms(trained_on, used),
        trained_on=[_title(name) for name in trained_on],
        drawn_only=trained_on == ["synthetic"],
        citations=cite(names, [DATASETS[name].citation for name in used if name in DATASETS]),
    )
    return str(card)


def datasets_of(steps: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The data sets that weights of this lineage learned from, those of their teachers included, each once."""
    names = (name for step in steps or () for name in (*_training_sets(step), *step.get("teachers_saw", ())))
    return list(dict.fromkeys(names))


def _eval_results(results: Sequence[Mapping[str, Any]], metrics: Mapping[str, str]) -> Iterator[EvalResult]:
    for result in results:
        for metric, label in metrics.items():
            yield EvalResult(
                task_type="image-classification" if metrics is ACCURACIES else "image-retrieval",
                task_name="Image classification" if metrics is ACCURACIES else "Person re-identification",
                dataset_type=result["dataset"]["name"],
                dataset_name=_title(result["dataset"]["name"]),
                dataset_split=result["dataset"]["split"],
                dataset_config=_setting(result),  # keeps two evaluations on one data set apart
                metric_type=metric,
                metric_name=label,
                metric_value=result["metrics"][metric],
            )


def _facts(config: ReIDConfig, is_classifier: bool) -> dict[str, str]:
    """What the configuration alone says; sizes come from the model itself, built without memory."""
    with torch.device("meta"):
        whole = ReIDForImageClassification(config) if is_classifier else ReIDModel(config)
    model = whole.reid if is_classifier else whole
    height, width = config.image_size
    facts = {
        "Variant": config.variant or "not a named one",
        "Backbone": config.backbone_config.model_type,
        "Parameters": f"{sum(p.numel() for p in whole.parameters()):,}",
        "Input": f"{height} x {width} pixels (height x width)",
        "Embedding": f"{model.embedding_dim} numbers",
        "Pooling, head, neck": f"{config.pooling}, {config.head}, {config.neck}",
    }
    if is_classifier:
        names = [config.id2label[number] for number in range(config.num_labels)]
        facts["Classes"] = f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    if config.compression is not None:
        kind = {"low_rank": "by a learned linear map", "pruned": "by pruning"}.get(config.compression, "by slicing")
        facts["Compressed"] = f"from {model.compression.in_features} numbers {kind}"
    if config.quantization is not None:
        facts["Stored as"] = f"{model.embedding_dim} bytes ({config.quantization}, one scale per " + (
            f"{config.quantization_granularity})"
        )
    if config.side is not None:
        memory = "with" if config.side["memory"] else "without"
        facts["Side network"] = f"cells {config.side['cell']}, trained {memory} a memory of earlier batches"
    if config.decision is not None:
        facts["Same person"] = (
            f"{config.decision['metric']} distance up to {config.decision['threshold']:.4f}: false matches "
            f"{100 * config.decision['false_match_rate']:.3g} %, true matches "
            f"{100 * config.decision['true_match_rate']:.1f} % on {config.decision['dataset']}"
        )
    return facts


def _chain_facts(config: WeightChainConfig) -> dict[str, str]:
    """What the configuration of a weight chain says."""
    teacher, student = config.teacher_config, config.student_config
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in ReIDModel(model).parameters()) for model in (student, teacher)]
        rows = sum(p.numel() for p in WeightChain(config).parameters())
    widths = [width_of(model) for model in (student, teacher)]
    return {
        "Teacher": f"{teacher.variant or teacher.backbone_config.model_type}, fingerprint {config.teacher_fingerprint}",
        "Widths of students": f"{widths[0]} to {widths[1]}",
        "Parameters of students": f"{sizes[0]:,} to {sizes[1]:,}",
        "Parameters of the chain": f"{rows:,}",
        "Clustering": f"{config.clustering}, {config.distance}",
        "Refined": _text("refinement", config.refinement) if config.refinement else "no, only clustered",
    }


def _evaluation(result: Mapping[str, Any], metrics: Mapping[str, str]) -> dict[str, Any]:
    dataset, protocol = result["dataset"], result["protocol"]
    details = {"data_dir_counts": dataset["data_dir_counts"], **protocol}
    if metrics is METRICS:
        details["rerank"] = protocol.get("rerank") or False
    return {
        "title": _title(dataset["name"]),
        "split": dataset["split"],
        "metrics": [f"{100 * result['metrics'][name]:.1f}" for name in metrics],
        "wrong_first": f"{100 * (1 - result['metrics'][next(n for n in ('rank1', 'top1') if n in metrics)]):.1f}",
        "best_epoch": result["metrics"].get("best_epoch"),
        "setting": _setting(result) or "-",
        "camera_note": dataset.get("camera_note"),
        "details": _table({**details, "versions": result["versions"]}),
        "command": result["command"],
    }


def _setting(result: Mapping[str, Any]) -> str | None:
    protocol = result["protocol"]
    parts = [
        protocol.get("metric"),
        protocol.get("codec"),
        *(LABELS[name].lower() for name in ("flip", "rerank") if protocol.get(name)),
    ]
    return ", ".join(part for part in parts if part) or None


def _table(values: Mapping[str, Any]) -> dict[str, str]:
    """Rows of a table, without what is not known (None) or empty."""
    known = {name: value for name, value in values.items() if value not in (None, {}, [])}
    return {LABELS.get(name, name.replace("_", " ").capitalize()): _text(name, value) for name, value in known.items()}


def _step(step: Mapping[str, Any]) -> str:
    rows = _table({name: step[name] for name in STEP if name in step})
    return ", ".join(f"{name.lower()} {value}" for name, value in rows.items())


def _text(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        nested = any(isinstance(item, Mapping) for item in value.values())
        rows = [(key.replace("_", " "), _text(key, item)) for key, item in value.items() if item is not None]
        return "; ".join(f"{key}: {row}" for key, row in rows) if nested else ", ".join(f"{k} {row}" for k, row in rows)
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(name, item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("macs"):
        return f"{value / 1e9:.3f} G"
    if name == "latency_ms":
        return f"{value:.2f} ms"
    if isinstance(value, int) and name != "seed":
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _training_sets(training: Mapping[str, Any]) -> list[str]:
    names = training.get("dataset") or []
    return [names] if isinstance(names, str) else list(names)


def _title(name: str) -> str:
    return DATASETS[name].title if name in DATASETS else name


def _license(trained_on: Sequence[str]) -> str | None:
    specs = [DATASETS.get(name) for name in trained_on]
    if not specs or None in specs:
        return None
    if all(spec.licence == "Apache-2.0" for spec in specs):
        return "apache-2.0"
    return None if all(spec.redistributable for spec in specs) else "other"


def _data_terms(trained_on: Sequence[str], used: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for name in dict.fromkeys(used):
        spec = DATASETS.get(name)
        rows.append(
            {
                "title": f"[{spec.title}]({spec.homepage})" if spec and spec.homepage else _title(name),
                "use": "training" if name in trained_on else "evaluation",
                "terms": spec.licence if spec else "not known to reid_hub: ask whoever holds the data",
                "notice": spec.notice if spec else "",
            }
        )
    return rows
