"""Encode images to vectors and codes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from PIL.Image import Transpose
from torch import Tensor
from tqdm.auto import tqdm
from transformers.image_utils import load_image

from .codes import CODECS, Codec, vector_scale
from .image_processing_reid import ReIDImageProcessor
from .neck import BNNeck

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Mixed
else:
    Mixed = object

# Transposition for each value of the EXIF orientation.
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class EncodingMixin(Mixed):
    """Embeddings of batches and of images; must precede `PreTrainedModel` in the bases."""

    def embed(
        self, pixel_values: Tensor, flip: bool = False, quantized: bool = True, retrieve: str | None = None
    ) -> Tensor:
        """Embeddings for retrieval, (B, 3, H, W) -> (B, D). Call it in evaluation mode.

        Args:
            flip: average the vectors of each image and its mirror image, before quantisation.
            quantized, retrieve: see `forward`.
        """
        options = {"quantized": False, "retrieve": retrieve}
        vectors = self(pixel_values, **options).embeddings
        if flip:
            vectors = (vectors + self(pixel_values.flip(3), **options).embeddings) / 2
        return self.quantizer(vectors) if quantized and self.quantizer is not None else vectors

    @property
    def precision(self) -> str:
        """Precision that the embeddings are trained for: "int8" if the model quantises them, else "float32"."""
        return "float32" if self.quantizer is None else self.quantizer.kind or "float32"

    def codec(self, name: str) -> Codec:
        """Codec for storing this model's embeddings in a gallery, with the scale and centre from training.

        It encodes the output of `forward` and `embed` with `quantized=False`.

        Args:
            name: a key of `CODECS`: "float32", "float16", "int8", or "binary" (one bit per dimension, v > `center`).

        Raises:
            ValueError: for an unknown name; for "int8", under the conditions of `int8_scale`.
        """
        if name not in CODECS:
            raise ValueError(f"precision must be one of {', '.join(CODECS)}, got {name!r}")
        state: dict[str, Any] = {}
        if name == "binary":
            state["center"] = self.center.detach().float().cpu().numpy()
        elif name == "int8" and self.precision == "int8" and self.quantizer.granularity != "vector":
            state["scale"] = self.int8_scale(self.center).cpu().numpy()
        return CODECS[name](self.embedding_dim, **state)

    def codes(self, vectors: Tensor, precision: str) -> np.ndarray:
        """Encode embeddings before quantisation: (N, D) -> (N, D) int8, or (N, ceil(D / 8)) uint8 for "binary".

        See `codec`.
        """
        return self.codec(precision).encode(vectors)

    def int8_scale(self, vectors: Tensor) -> Tensor:
        """Value of one int8 step: the model's own scale, () or (D,), or else that of each vector, (N, 1).

        The scale of a vector is max |v| / 127, and cancels under cosine.

        Raises:
            ValueError: if the model quantises to int8 but has not been trained or fitted yet.
        """
        if self.precision == "int8":
            if not self.quantizer.num_batches_tracked:
                raise ValueError("this model has no int8 scale yet: train it, or fit its quantizer, before it encodes")
            return self.quantizer.scale(vectors)
        return vector_scale(vectors)

    @property
    def center(self) -> Tensor:
        """(D,) mean of the embeddings in training if the model tracks it, else zeros."""
        if self.quantizer is not None:
            return self.quantizer.center
        if self.config.retrieve == "features" and isinstance(self.neck, BNNeck):
            return self.neck.running_mean
        return torch.zeros(self.embedding_dim, device=self.device)

    @torch.inference_mode()
    def encode(
        self,
        images: Sequence,
        precision: str = "float32",
        flip: bool = True,
        batch_size: int = 64,
        progress: bool = False,
    ) -> np.ndarray:
        """Embed images -> (N, D).

        The vectors are those of `embed` in evaluation mode, not normalised. The model's training mode is restored.

        Args:
            images: PIL images, uint8 arrays (H, W, 3), paths or URLs.
            precision: "float32", or another key of `CODECS` to return codes for a gallery, see `codec`: "float16",
                "int8", or "binary" (uint8, eight dimensions per byte).
            flip: average the vectors of each image and its mirror image.
            batch_size: number of images per forward pass.
            progress: show a progress bar.

        Raises:
            ValueError: for an unknown precision.
        """
        codec = self.codec(precision)
        if isinstance(images, (str, Path)) or not isinstance(images, Sequence):
            images = [images]
        processor, was_training = ReIDImageProcessor.from_config(self.config), self.training
        self.eval()
        try:
            encoded = [self._encoded(torch.empty(0, self.embedding_dim, device=self.device), codec)]
            for start in tqdm(range(0, len(images), batch_size), desc="encode", disable=not progress):
                batch = [_open(image) for image in images[start : start + batch_size]]
                pixels = processor(batch, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
                encoded.append(self._encoded(self.embed(pixels, flip, quantized=False), codec))
        finally:
            self.train(was_training)
        return np.concatenate(encoded)

    def _encoded(self, vectors: Tensor, codec: Codec) -> np.ndarray:
        quantized = codec.name == "float32" and self.quantizer is not None
        return codec.encode(self.quantizer(vectors) if quantized else vectors)


def _open(image):
    if not isinstance(image, (str, Path)):
        return image
    if not os.path.isfile(image):
        return load_image(str(image))  # a URL
    with Image.open(image) as opened:
        opened.load()
        return _upright(opened).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation as `load_image` does, but leave images with a damaged EXIF block, where it fails."""
    try:
        turn = _TURNS.get(image.getexif().get(0x0112))
    except Exception:  # various types; the pixels are still valid
        return image
    return image if turn is None else image.transpose(turn)
