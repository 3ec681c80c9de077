"""The re-identification model: a backbone, a pooling, a head and a neck, as a `PreTrainedModel`."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.image_utils import load_image
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbone_library import LibraryBackbone
from .backbone_osnet import OSNet
from .backbone_squeezenet import SqueezeNet
from .configuration_reid import ReIDConfig
from .head_linear import LinearHead
from .image_processing_reid import ReIDImageProcessor
from .layers import BNNeck, GeMPool, build_pooling

# Backbones of our own by the model_type of their configuration; everything else is a library's.
BACKBONES: dict[str, Callable[[Any], nn.Module]] = {"reid_osnet": OSNet, "reid_squeezenet": SqueezeNet}

PRECISIONS = ("float32",)
# Fields of the configuration that change an embedding without changing a weight.
VECTOR_FIELDS = ("image_mean", "image_size", "image_std", "interpolation", "last_stride", "pooling", "retrieve")


@dataclass
class ReIDOutput(ModelOutput):
    """What a `ReIDModel` returns.

    Attributes:
        embeddings: (B, D); in evaluation the vector to search with, in training the neck's output, which is classified.
        features: (B, C); the vector in front of the neck, which metric losses compare.
        feature_map: (B, C, h, w), or tokens (B, N, C), of the backbone.
        pooler_output: the embeddings again, under the name that transformers' pipelines read.
    """

    embeddings: Tensor = None
    features: Tensor = None
    feature_map: Tensor = None
    pooler_output: Tensor = None


class ReIDModel(PreTrainedModel):
    """Pictures to vectors for person re-identification, (B, 3, H, W) -> `ReIDOutput`."""

    config: ReIDConfig
    config_class = ReIDConfig
    base_model_prefix = "reid"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    model_tags = ("person-reid",)
    # The package plugs its card writer in here: folder in, README.md out. A copy in a checkpoint has none.
    card_writer: Callable[[Path], Any] | None = None

    def __init__(self, config: ReIDConfig):
        super().__init__(config)
        backbone = config.backbone_config
        if backbone.model_type in BACKBONES:
            self.backbone = BACKBONES[backbone.model_type](backbone)
        else:
            self.backbone = LibraryBackbone(backbone, config.last_stride)
        self.pooling = build_pooling(config)
        self.feature_dim = self.backbone.out_channels
        self.head = nn.Identity()
        if config.head == "linear":
            options = {"bias": config.head_bias, "relu": config.head_relu, "init_std": config.head_init_std}
            self.head = LinearHead(self.feature_dim, config.embedding_dim, **options)
            self.feature_dim = config.embedding_dim
        self.neck = BNNeck(self.feature_dim) if config.neck == "bnneck" else nn.Identity()
        self.embedding_dim = self.feature_dim
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs) -> ReIDOutput:
        """Embed a batch of normalised pictures.

        Raises:
            ValueError: unless `pixel_values` is (B, 3, H, W).
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values must be (B, 3, H, W), got {tuple(pixel_values.shape)}")
        feature_map = self.backbone(pixel_values)
        features = self.head(self.pooling(feature_map))
        embeddings = self.neck(features) if self.training or self.config.retrieve == "neck" else features
        return ReIDOutput(embeddings, features, feature_map, embeddings)

    @torch.no_grad()
    def _init_weights(self, module):
        """Initialise one leaf of ours; nested library models answer for their own.

        Convolutions: Kaiming normal, fan-out. FC of the head: Kaiming fan-out or N(0, head_init_std^2). Norms: 1 and 0.
        """
        if isinstance(module, nn.Linear) and getattr(module, "init_std", None) is not None:
            init.normal_(module.weight, std=module.init_std)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (BNNeck, nn.BatchNorm1d, nn.BatchNorm2d)):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, GeMPool):
            init.constant_(module.p, module.initial_p)
        if isinstance(module, (BNNeck, nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)):
            init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), Tensor):
            init.zeros_(module.bias)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Trade compute for memory in a transformer backbone.

        Raises:
            ValueError: for a backbone with batch norm, whose running statistics the second forward would update twice.
        """
        model = getattr(self.backbone, "model", None)
        if model is None or any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.backbone.modules()):
            raise ValueError(
                "gradient checkpointing runs the forward twice, and batch norm would update its running statistics "
                f"twice; only transformer backbones have it, not {self.config.backbone_config.model_type!r}"
            )
        if hasattr(PreTrainedModel, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)
        else:  # its name until transformers 5.20
            model.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """The same under its former name, which older versions of transformers call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    @torch.inference_mode()
    def encode(
        self,
        images: Sequence,
        precision: str = "float32",
        flip: bool = True,
        batch_size: int = 64,
        progress: bool = False,
    ) -> np.ndarray:
        """Embed pictures, each a PIL image, an array (H, W, 3) of uint8, a path or a URL: -> (N, D) float32.

        The vectors are what `forward` gives in evaluation, not normalised; `flip` averages those of a picture and of
        its mirror image. The model is left in the mode it was found in.

        Raises:
            ValueError: for an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if isinstance(images, (str, Path)) or not isinstance(images, Sequence):
            images = [images]
        processor, was_training, vectors = ReIDImageProcessor.from_config(self.config), self.training, []
        self.eval()
        try:
            for start in tqdm(range(0, len(images), batch_size), desc="encode", disable=not progress):
                batch = [_open(image) for image in images[start : start + batch_size]]
                pixels = processor(batch, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
                embeddings = self(pixels).embeddings
                if flip:
                    embeddings = (embeddings + self(pixels.flip(3)).embeddings) / 2
                vectors.append(embeddings.float().cpu())
        finally:
            self.train(was_training)
        return torch.cat(vectors).numpy() if vectors else np.empty((0, self.embedding_dim), np.float32)

    def fingerprint(self) -> str:
        """A digest of what decides the embeddings: weights and configuration; stored with an index of them."""
        digest = hashlib.sha256()
        config = {key: value for key, value in self.config.to_dict().items() if key in VECTOR_FIELDS}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, save_directory, *, results: dict | list | None = None, **kwargs) -> None:
        """Write weights, configuration, code, image processor and card; `results` go beside them as results.json.

        Everything is written to a temporary folder first: a full disk leaves an earlier checkpoint as it was.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained(push_to_hub=True) is not offered: call model.push_to_hub(repo_id)")
        if not kwargs.get("is_main_process", True):
            return
        target = Path(save_directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            super().save_pretrained(temporary, **kwargs)
            ReIDImageProcessor.from_config(self.config).save_pretrained(temporary)
            if results is not None:
                (temporary / "results.json").write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
            if type(self).card_writer is not None:
                type(self).card_writer(temporary)
            target.mkdir(exist_ok=True)
            for file in sorted(temporary.iterdir()):
                os.replace(file, target / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        results: dict | list | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a person re-identification model",
        commit_description: str | None = None,
        create_pr: bool = False,
        token: bool | str | None = None,
    ):
        """Save to a temporary folder and upload it to the Hub in one commit; returns the commit's information."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, results=results)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                commit_description=commit_description,
                create_pr=create_pr,
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a checkpoint; every tensor must be there and be used, unless `output_loading_info` is asked for.

        Raises:
            ValueError: if tensors are missing or left over, naming them.
        """
        kwargs.setdefault("ignore_mismatched_sizes", not output_loading_info)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, info
        misshaped = [f"{name} {tuple(got)} not {tuple(due)}" for name, got, due in sorted(info["mismatched_keys"])]
        missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing or extra or misshaped:
            raise ValueError(
                f"{pretrained_model_name_or_path} does not fit its configuration: missing {_some(missing)}; not used "
                f"{_some(extra)}; of another shape {_some(misshaped)}. Mend config.json, or convert foreign weights "
                "with `reid-hub convert`"
            )
        return model


def _open(image):
    return load_image(str(image)) if isinstance(image, (str, Path)) else image


def _some(names: list[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else "none"
