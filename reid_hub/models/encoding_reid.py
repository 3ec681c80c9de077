"""Encoding images to vectors and codes."""

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

# How images are turned by the values of their EXIF orientation.
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
    """Embeddings of batches and of images, in front of `PreTrainedModel`."""

    def embed(
        self, pixel_values: Tensor, flip: bool = False, quantized: bool = True, retrieve: str | None = None
    ) -> Tensor:
        """Embeddings as they are searched with, (B, 3, H, W) -> (B, D); for evaluation mode.

        Args:
            flip: average the vectors of an image and of its mirror image; a quantiser follows the average.
            quantized, retrieve: see `forward`.
        """
        options = {"quantized": False, "retrieve": retrieve}
        vectors = self(pixel_values, **options).embeddings
        if flip:
            vectors = (vectors + self(pixel_values.flip(3), **options).embeddings) / 2
        return self.quantizer(vectors) if quantized and self.quantizer is not None else vectors

    @property
    def precision(self) -> str:
        """The codes that the embeddings are made for: "int8" for a model that quantises them, else "float32"."""
        return "float32" if self.quantizer is None else self.quantizer.kind or "float32"

    def codec(self, name: str) -> Codec:
        """How a gallery stores this model's embeddings, with the scale and the centre that training has found.

        It encodes what `forward` and `embed` give with `quantized=False`.

        Args:
            name: a key of `CODECS`: "float32", "float16", "int8", or "binary" (bits: above `center` or not).

        Raises:
            ValueError: for an unknown name; for "int8" as `int8_scale`.
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
        """Embeddings in front of the quantiser as codes, (N, D) -> (N, D) int8, or (N, ceil(D / 8)) uint8 for "binary";
        see `codec`."""
        return self.codec(precision).encode(vectors)

    def int8_scale(self, vectors: Tensor) -> Tensor:
        """What an int8 code of 1 stands for: the model's own scale, () or (D,), or without one each vector's, (N, 1).

        That of a vector is max |v| / 127, and cancels under cosine.

        Raises:
            ValueError: for a model that is to have a scale of its own, before it was trained or fitted.
        """
        if self.precision == "int8":
            if not self.quantizer.num_batches_tracked:
                raise ValueError("this model has no int8 scale yet: train it, or fit its quantizer, before it encodes")
            return self.quantizer.scale(vectors)
        return vector_scale(vectors)

    @property
    def center(self) -> Tensor:
        """(D,) mean of the embeddings over the training, as far as the model knows it, else zeros."""
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
        """Embed images, each a PIL image, an array (H, W, 3) of uint8, a path or a URL: -> (N, D).

        The vectors are what `embed` gives in evaluation, not normalised. The model is left in the mode it was found in.

        Args:
            precision: "float32", or another key of `CODECS` for the codes that a gallery stores, see `codec`:
                "float16", "int8", or "binary" (uint8, eight coordinates to a byte).
            flip: average the vectors of an image and of its mirror image.

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
    """As `load_image` turns an image, but one with a damaged EXIF block, which that stumbles over, stays as it is."""
    try:
        turn = _TURNS.get(image.getexif().get(0x0112))
    except Exception:  # of many kinds; the pixels are sound all the same
        return image
    return image if turn is None else image.transpose(turn)
