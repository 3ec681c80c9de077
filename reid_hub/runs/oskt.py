"""OSKT's published experiments as data: teacher, chain and student, on one data set or from one to another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reid_hub.errors import ReIDError
from reid_hub.evaluation import RetrievalEvaluation
from reid_hub.registry import lookup
from reid_hub.runs.models import open_chain
from reid_hub.runs.options import Pairs, Part, Settings, option
from reid_hub.runs.processes import is_main_process, wait_for_everyone
from reid_hub.runs.refine import RefineSettings, refine
from reid_hub.runs.settings import IMAGE_SIZE, TrainSettings
from reid_hub.runs.train import train


@dataclass(frozen=True)
class Scenario:
    """Where the chain is refined and where its students are trained: data sets with their options."""

    chain: str
    student: str
    options: Mapping[str, Mapping[str, Any]] = field(
        # The published lists: MSMT17's training list alone, CUHK03's new protocol on detected boxes.
        default_factory=lambda: {"msmt17": {"merge_val": False}, "cuhk03": {"boxes": "detected"}}
    )


SCENARIOS = {
    "m": Scenario("market1501", "market1501"),
    "ms-m": Scenario("msmt17", "market1501"),
    "ms-c": Scenario("msmt17", "cuhk03"),
    "m-c": Scenario("market1501", "cuhk03"),
    "ms": Scenario("msmt17", "msmt17"),
}


@dataclass(frozen=True)
class Family:
    """A teacher, its recipes (teacher, refinement, student), and its students with the chain width of each.

    Attributes:
        narrowest: whether a student is the chain's narrowest, including its embedding, regardless of its variant.
        refinement: changes to the refinement recipe, to continue with the teacher's classifier and losses.
        refine_epochs: overrides that recipe's epochs.
    """

    teacher: str
    recipes: tuple[str, str, str]
    students: Mapping[str, int]
    narrowest: bool = False
    refinement: Mapping[str, Any] = field(default_factory=dict)
    refine_epochs: float | None = None


FAMILIES = {
    "res50": Family(
        "res50", ("bot-teacher", "oskt", "bot"),
        {"res50-s1": 8, "res50-s2": 8, "res50-s3": 16, "res50-s4": 16, "res50-s5": 32, "res50-s6": 32},
    ),
    # The published scripts' chain widths; the supplement has 96 and 192.
    "vit-s": Family("vit-s", ("vit", "oskt-vit", "vit"), {"vit-s-s1": 120, "vit-s-s2": 120}),
    "vit-b": Family("vit-b", ("vit", "oskt-vit", "vit"), {"vit-b-s1": 264, "vit-b-s2": 264}),
    # The paper only gives 50 epochs: the losses are those of the teachers' own recipes.
    "osnet": Family(
        "osnet-x1.0", ("osnet", "oskt", "osnet"), {"osnet-x0.25": 16, "osnet-x0.5": 32}, narrowest=True,
        refinement={"options.metric": None, "options.center_weight": 0.0, "options.classifier_bias": True},
        refine_epochs=50,
    ),
    "msinet": Family(
        "msinet-x1.0", ("msinet", "oskt", "msinet"), {"msinet-x0.25": 16, "msinet-x0.5": 32}, narrowest=True,
        refinement={
            "options.metric_options": {"margin": 0.3, "normalise": True}, "options.center_weight": 0.0,
            "options.classifier_bias": True, "options.per_part": True,
        },
        refine_epochs=50,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ScenarioArguments(Part):
    """The published experiment to run, and its data."""

    scenario: str = option(
        "m",
        "m: Market-1501 alone; ms-m, ms-c, m-c: chain on one data set, student on another; ms: MSMT17 alone.",
        choices=list(SCENARIOS),
    )
    student: str = option("res50-s1", "A published student, such as res50-s1, vit-s-s1 or osnet-x0.25.")
    data_dirs: Pairs = option(Pairs, "Folder of each data set, such as market1501=DIR.", metavar="NAME=DIR")
    init: str | None = option(None, "Initial weights of the teacher, such as LUPerson's or PASS's.")
    out: str = option("runs/oskt", "Folder for teacher, chain and student.")
    keep_ids: float = option(1.0, "Share of the student's training identities kept, drawn by the seed (few-shot).")
    epochs: float | None = option(None, "Number of epochs of each training (default: the recipes').")
    image_size: list[int] | None = option(None, IMAGE_SIZE, nargs=2, metavar="PIXELS")
    seed: int = option(0, "Seed of the student's weights, batches and augmentation.")
    arg: Pairs = option(Pairs, "Set an argument of transformers.TrainingArguments, such as bf16=true.",
                        metavar="NAME=VALUE")  # fmt: skip


@dataclass(frozen=True)
class ScenarioSettings(Settings):
    """One of OSKT's published experiments."""

    scenario: ScenarioArguments = ScenarioArguments()


def family_of(student: str) -> Family:
    """The family that a student belongs to.

    Raises:
        ReIDError: if no published experiment has it; the message suggests the nearest name.
    """
    return lookup({name: family for family in FAMILIES.values() for name in family.students}, student, "student")


def run_scenario(
    name: str,
    student: str,
    data_dirs: Mapping[str, str],
    *,
    init: str | None = None,
    out: str | Path = "runs/oskt",
    share: float = 1.0,
    common: Mapping[str, Any] | None = None,
) -> RetrievalEvaluation | None:
    """Train a teacher, refine its chain, expand a student and train it. Finished steps are skipped, others resumed.

    Args:
        name: of `SCENARIOS`.
        student: a variant of `FAMILIES`.
        data_dirs: the folder of each data set by name.
        init: weights that the teacher starts from, such as LUPerson's or PASS's.
        share: of the student's training identities, drawn by its seed: few-shot.
        common: options of `TrainSettings` for all three trainings, such as epochs, seed, image_size or arg.

    Raises:
        ReIDError: for an unknown scenario or student, or a data set whose folder is not given.
    """
    scenario, family, out = lookup(SCENARIOS, name, "scenario"), family_of(student), Path(out)
    missing = sorted({scenario.chain, scenario.student} - set(data_dirs))
    if missing:
        raise ReIDError(f"the scenario {name!r} needs the folder of {' and '.join(missing)}")
    fixed = {"validation": 0.0, "resume": True, "channels_last": "vit" not in student, **(common or {})}

    def options(data: str, recipe: str, folder: str, **more: Any) -> dict[str, Any]:
        place = {"data": data, "data_dir": data_dirs[data], "data_option": scenario.options.get(data, {})}
        return {**fixed, **place, "recipe": recipe, "out": out / folder, **more}

    width = family.students[student]
    name = f"{family.teacher}-{scenario.chain}"
    # The seed is the student's: few-shot runs of one chain differ only in it.
    teacher = options(scenario.chain, family.recipes[0], name, model=family.teacher, init=init, seed=0)
    chain = options(
        scenario.chain, family.recipes[1], f"{name}.chain{width}", model=str(out / name), width=width, seed=0,
        set={**family.refinement, **fixed.get("set", {})}, epochs=fixed.get("epochs") or family.refine_epochs,
    )  # fmt: skip
    train(TrainSettings.of(**teacher))
    refine(RefineSettings.of(**chain))
    few = f".{share:g}" if share != 1 else ""
    run = f"{student}.oskt-{scenario.chain}-{scenario.student}{few}.seed{fixed.get('seed', 0)}"
    start = out / run / "start"
    if is_main_process() and not (start / "config.json").is_file():
        open_chain(chain["out"]).expand(None if family.narrowest else student).save_pretrained(start)
    wait_for_everyone()
    last = options(scenario.student, family.recipes[2], run, model=str(start), origin="oskt", keep_ids=share)
    return train(TrainSettings.of(**last))
