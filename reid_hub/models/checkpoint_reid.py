"""Save, publish and load checkpoints; loading rejects checkpoints that do not match their configuration."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from safetensors import SafetensorError

from .backbones import carry_family, family_of
from .flat_fields import flat_fields
from .image_processing_reid import ReIDImageProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Mixed
else:
    Mixed = object

# Configuration fields that change the embeddings without changing a weight.
VECTOR_FIELDS = (
    "compressed_dim", "compression", "head_relu", "image_mean", "image_size", "image_std", "interpolation",
    "last_stride", "neck", "pooling", "pooling_window", "quantization", "quantization_granularity", "retrieve",
)  # fmt: skip
# Fields added later: included only if they are set, so that fingerprints of older models do not change.
LATER_VECTOR_FIELDS = ("resize_shortest", "side", "stride1_stage")

# With these files, sentence-transformers 6 loads a checkpoint as an image model.
SENTENCE_TRANSFORMERS = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
        "module_output_name": "sentence_embedding",
    },
}


class CheckpointMixin(Mixed):
    """Saving, publishing and loading; must precede `PreTrainedModel` in the bases."""

    # Set by the package: card_writer(folder) and publisher(folder, repo_id, **options). In a copy of this file that is
    # shipped with a checkpoint both are None, and no card is written.
    card_writer: Callable[[Path], Any] | None = None
    publisher: Callable[..., Any] | None = None

    def fingerprint(self) -> str:
        """Digest of the weights and of the configuration that affects embeddings; indexes store it."""
        digest = hashlib.sha256()
        config = self.config.to_dict()
        if hasattr(self.config, "pooling"):  # fingerprints have always used the flat names
            config |= flat_fields(self.config)
        later = {key: config[key] for key in LATER_VECTOR_FIELDS if config.get(key)}
        config = {key: value for key, value in config.items() if key in VECTOR_FIELDS or "." in key} | later
        if (backbone := getattr(self.config, "backbone_config", None)) is not None:
            names = family_of(backbone).vector_fields
            config |= {f"backbone.{name}": getattr(backbone, name) for name in names if hasattr(backbone, name)}
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def fresh_prefixes(self) -> tuple[str, ...]:
        """Name prefixes of tensors that may be missing from a checkpoint; they keep their initialisation."""
        return ()

    def save_pretrained(self, save_directory, *, results: dict | list | None = None, **kwargs) -> None:
        """Save weights, configuration, code, companion files and card, and `results` as results.json.

        Everything is written to a temporary folder first, so a full disk leaves an existing checkpoint unchanged. An
        existing results.json is removed because it was measured with other weights.

        Raises:
            ValueError: if `push_to_hub=True` is passed; use `push_to_hub` instead.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained(push_to_hub=True) is not offered: call model.push_to_hub(repo_id)")
        if not kwargs.get("is_main_process", not dist.is_initialized() or dist.get_rank() == 0):
            return
        target = Path(save_directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            super().save_pretrained(temporary, **kwargs)
            files = dict(self.write_companions(temporary))
            carry_family(temporary, getattr(self.config, "teacher_config", self.config).backbone_config)
            if results is not None:
                files["results.json"] = results
            for name, content in files.items():
                (temporary / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            if type(self).card_writer is not None:
                type(self).card_writer(temporary)
            _move_into(target, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_companions(self, folder: Path) -> dict[str, Any]:
        """Write the image processor; return further JSON files to write, content by file name."""
        ReIDImageProcessor.from_config(self.config).save_pretrained(folder)
        return SENTENCE_TRANSFORMERS

    def push_to_hub(
        self,
        repo_id: str,
        *,
        results: dict | list | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a person re-identification model",
        token: bool | str | None = None,
    ):
        """Save to a temporary folder and upload it to the Hub in one commit; return the commit info."""
        options = {"private": private, "revision": revision, "commit_message": commit_message, "token": token}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, results=results)
            return (type(self).publisher or _upload)(folder, repo_id, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a checkpoint; its tensors must match the model exactly unless `output_loading_info` is True.

        Raises:
            ValueError: if the file is damaged, or tensors are missing, unexpected or of another shape (all are named).
        """
        kwargs.setdefault("ignore_mismatched_sizes", not output_loading_info)
        try:
            loading: dict[str, Any] = {**kwargs, "output_loading_info": True}
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **loading)
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} are damaged ({error}): save or fetch them again"
            ) from error
        model, info = loaded
        if output_loading_info:
            return model, info
        misshaped = [f"{name} {tuple(got)} not {tuple(due)}" for name, got, due in sorted(info["mismatched_keys"])]
        missing = sorted(name for name in info["missing_keys"] if not name.startswith(model.fresh_prefixes()))
        extra = sorted(info["unexpected_keys"])
        if missing or extra or misshaped:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not fit its configuration: missing {_some(missing)}; not used "
                f"{_some(extra)}; of another shape {_some(misshaped)}. Mend config.json, or convert foreign weights "
                "with `reid-hub convert`"
            )
        return model


def _move_into(target: Path, temporary: Path) -> None:
    """Move the new files into place, each atomically, and remove the files of the old weights."""
    target.mkdir(exist_ok=True)
    new = {file.name for file in temporary.iterdir()}
    for name in sorted(new):
        os.replace(temporary / name, target / name)
    for old in [target / "results.json", *target.glob("*.safetensors*")]:
        if old.name not in new:
            old.unlink(missing_ok=True)


def _upload(folder, repo_id, *, private, revision, commit_message, token):
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)


def _some(names: list[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "none"
