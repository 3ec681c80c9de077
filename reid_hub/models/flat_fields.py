"""Flat configuration fields, the former format of its parts, which recipes and old checkpoints still use."""

from collections.abc import Mapping
from typing import Any

from .embedding_layer import EMBEDDINGS
from .neck import NECKS
from .parts import Part, options_of
from .pooling import POOLINGS
from .reductions import REDUCTIONS

# The parts of a configuration after the backbone, in order: classes by name.
PARTS: dict[str, Mapping[str, type[Part]]] = {
    "pooling": POOLINGS,
    "embedding": EMBEDDINGS,
    "neck": NECKS,
    "codes": REDUCTIONS,
}
# Flat field -> (part, option of the part, default).
FLAT: dict[str, tuple[str, str, Any]] = {
    "pooling": ("pooling", "name", "avg"),
    "gem_p": ("pooling", "p", 3.0),
    "pooling_window": ("pooling", "window", 4),
    "head": ("embedding", "name", "none"),
    "embedding_dim": ("embedding", "dim", None),
    "head_bias": ("embedding", "bias", False),
    "head_norm": ("embedding", "norm", True),
    "head_relu": ("embedding", "relu", False),
    "head_init_std": ("embedding", "init_std", None),
    "neck": ("neck", "name", "bnneck"),
    "compression": ("codes", "name", None),
    "compressed_dim": ("codes", "dim", None),
    "quantization": ("codes", "quantization", None),
    "quantization_granularity": ("codes", "granularity", "tensor"),
}
# Options whose flat fields are errors for a part without them; others are ignored for such a part, as they used to be.
_MEANT = ("dim", "quantization")


def join_fields(base: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Update fields of a `ReIDConfig`; parts are returned as {"name": ..., option: value}.

    Only the given options of a part change. If its name changes, it keeps the options that the new part has as well.

    Args:
        base: fields in the format that this function returns.
        fields: updates, with parts given by name ("gem"), by options ({"p": 2.0}, with or without a name), or as flat
            fields.
    """
    joined = {**base, **{name: value for name, value in fields.items() if name not in FLAT and name not in PARTS}}
    names = {part: default for part, option, default in FLAT.values() if option == "name"}
    for part, classes in PARTS.items():
        asked = fields.get(part) or {}
        asked = {"name": asked} if isinstance(asked, str) else dict(asked)
        flat = {FLAT[name][1]: fields[name] for name in FLAT if name in fields and name != part == FLAT[name][0]}
        if part not in fields and not flat:
            continue
        before = base.get(part) or {}
        removed = part in fields and fields[part] is None and not flat
        name = None if removed else flat.get("name", asked.get("name", before.get("name", names[part])))
        options = options_of(classes[name]) if name in classes else {}
        kept = {option: value for option, value in before.items() if option in options}
        flat = {
            option: value
            for option, value in flat.items()
            if option in options or (option in _MEANT and value is not None)
        }
        new = {"name": name, **kept, **{option: value for option, value in asked.items() if option != "name"}, **flat}
        if "dim" in new and new["dim"] is None:
            del new["dim"]
        joined[part] = new if name is not None or len(new) > 1 else None
    return joined


def flat_fields(config: Any) -> dict[str, Any]:
    """The parts of a `ReIDConfig` as flat fields; options without a flat field are named "PART.OPTION"."""
    flat = {name: default for name, (_, _, default) in FLAT.items()}
    names = {(part, option): name for name, (part, option, _) in FLAT.items()}
    for part in PARTS:
        for option, value in (getattr(config, part) or {}).items():
            flat[names.get((part, option), f"{part}.{option}")] = value
    return flat
