"""BibTeX entries, by the names that configurations and results.json use.

A card cites what its model used. A model `Family`, a `Method` class and a `DatasetSpec` define their own citation; add
that of a recipe here.
"""

import re
from collections.abc import Iterable

from reid_hub.methods import METHODS
from reid_hub.models.families import FAMILIES

CITATIONS: dict[str, str] = {
    # recipes and methods, by their name in results.json
    "transreid": """@inproceedings{he2021transreid,
  title     = {{TransReID}: Transformer-Based Object Re-Identification},
  author    = {He, Shuting and Luo, Hao and Wang, Pichao and Wang, Fan and Li, Hao and Jiang, Wei},
  booktitle = {ICCV}, year = {2021}
}""",
    # evaluation
    "rerank": """@inproceedings{zhong2017rerank,
  title     = {Re-ranking Person Re-identification with k-reciprocal Encoding},
  author    = {Zhong, Zhun and Zheng, Liang and Cao, Donglin and Li, Shaozi},
  booktitle = {CVPR}, year = {2017}
}""",
}


def cite(names: Iterable[str | None], entries: Iterable[str] = ()) -> list[str]:
    """BibTeX entries without duplicates: the citations of the names, then `entries`.

    Parts of a name count as well: "transreid-vit" cites "transreid", "oskt.refine" cites "oskt".
    """
    parts = {part for name in names if name for part in (name, *re.split(r"[-./ ]", name.lower()))}
    named = [method.citation for name, method in METHODS.items() if name in parts]
    named += [family.citation for name, family in FAMILIES.items() if family.citation and name in parts]
    named += [entry for name, entry in CITATIONS.items() if name in parts]
    works = {}
    for text in (*named, *entries):
        for entry in re.split(r"\n(?=@)", text.strip()):
            if entry:
                works.setdefault(entry.partition(",")[0], entry)
    return list(works.values())
