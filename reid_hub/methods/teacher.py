"""A frozen teacher beside a student."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reid_hub.compat import WithCompanions
from reid_hub.models import ReIDModel


class FrozenTeacher(WithCompanions):
    """A trained model that a student learns from and that the student's training does not change.

    It is shown the student's images in its own normalisation and size, and answers in evaluation mode, without
    gradient and in its own precision, whatever the student is trained in: beside a student in half precision it says
    what it says alone. It moves with the method that it belongs to, but is no part of its state dict, of its
    parameters, or of what is exported.

    Args:
        model: put into evaluation mode and frozen; give a copy of a model that is used otherwise.
        mean, std: the normalisation of the images that it is shown; its own by default.
    """

    def __init__(self, model: ReIDModel, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None):
        super().__init__()
        # In a tuple it is no submodule: neither `train` nor an optimizer nor a checkpoint reaches it.
        self._hidden = (model.eval().requires_grad_(False),)
        config = model.config
        theirs, ours = ((mean or config.image_mean, std or config.image_std), (config.image_mean, config.image_std))
        # (x * std + mean) is the image in [0, 1]; the teacher's normalisation of it is one gain and one offset.
        (mean, std), (own_mean, own_std) = (torch.tensor(pair, dtype=torch.float64) for pair in (theirs, ours))
        self._same = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        self._gain = (std / own_std).float().view(-1, 1, 1)
        self._offset = ((mean - own_mean) / own_std).float().view(-1, 1, 1)

    @property
    def model(self) -> ReIDModel:
        """The model itself."""
        return self._hidden[0]

    def answer(self, pixel_values: Tensor, **options: Any) -> Any:
        """What it says of images in its own normalisation, size and precision."""
        return self.model(pixel_values, **options)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Images (B, 3, H, W) as the student sees them -> what `answer` says, by default the model's `ReIDOutput`."""
        x, size, was_training = pixel_values, tuple(self.model.config.image_size), self.model.training
        if not self._same:
            x = x * self._gain.to(x.device) + self._offset.to(x.device)
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        self.model.eval()
        try:
            with torch.autocast(x.device.type, enabled=False):
                return self.answer(x.to(self.model.dtype), **options)
        finally:
            self.model.train(was_training)

    def fingerprint(self) -> dict[str, Any]:
        """All that decides its answers, as plain values."""
        return {"teacher": self.model.fingerprint()}

    def companions(self) -> tuple[ReIDModel, ...]:
        """The model goes where this module goes."""
        return self._hidden
