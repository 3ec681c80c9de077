"""Refinement of a weight chain: the teacher and the narrowest student, trained together until they agree."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call

from reid_hub.data.batch import Batch
from reid_hub.errors import ReIDError
from reid_hub.methods.base import RunContext
from reid_hub.methods.supervised import SupervisedMethod
from reid_hub.models import ReIDModel, WeightChain
from reid_hub.models.layers import BATCH_NORMS
from reid_hub.models.weight_chain import is_fitted
from reid_hub.models.width_slots import Decoder

ALPHA_SCHEDULES = ("constant", "ramp")


class RefineMethod(SupervisedMethod):
    """One-Shot Knowledge Transfer's refinement (arXiv:2511.06016): L = L_T + L_S + alpha * L_ref.

    L_T and L_S are the supervised losses of the teacher and of the narrowest student, L_ref the squared distance of
    every row of the teacher to its row of the chain. All of it is trained, and nothing is detached. The student runs
    in its own width, with tensors decoded from the chain in every step, which gives the same values and gradients as
    the published network of teacher width with duplicated channels.

    In a CNN the student's norms and biases are means of the teacher's own, so its loss trains them too; a ViT's chain
    has copies, tied to the teacher's by L_ref (`shared_vectors`). Activation checkpointing covers the teacher alone.

    Args:
        model: the teacher, trained in place.
        chain: made from this teacher; trained in place.
        num_ids: identities of the training set.
        alpha: weight of L_ref at the end.
        alpha_schedule: "constant", or "ramp" from 0 in proportion to the steps (the published ViT way).
        normalise: mean over the layers of L_ref's sum over a layer's chain rows divided by their number, as in the
            paper; by default the plain sum of the published code.
        teacher_loss: False leaves L_T, and the teacher's forward pass, out (an ablation).
        shared_vectors: by default as published: True with batch norm, False without.
        losses: options of `SupervisedMethod`, for teacher and student alike.

    Raises:
        ReIDError: if the chain was made from another teacher.
    """

    citation = """@inproceedings{li2025oskt,
  title     = {One-Shot Knowledge Transfer for Scalable Person Re-Identification},
  author    = {Li, Longhua and Qi, Lei and Geng, Xin},
  booktitle = {ICCV}, pages = {668--677}, year = {2025}
}"""

    def __init__(
        self,
        model: ReIDModel,
        num_ids: int,
        *,
        chain: WeightChain,
        alpha: float = 1.0,
        alpha_schedule: str = "constant",
        normalise: bool = False,
        teacher_loss: bool = True,
        shared_vectors: bool | None = None,
        **losses: Any,
    ):
        super().__init__(model, num_ids, **losses)
        if chain.config.teacher_fingerprint != model.fingerprint():
            raise ReIDError(
                f"the chain was made from the teacher {chain.config.teacher_fingerprint}, this one is "
                f"{model.fingerprint()}: give that teacher, or cluster this one with WeightChain.from_teacher"
            )
        if alpha_schedule not in ALPHA_SCHEDULES:
            raise ReIDError(f"alpha_schedule must be one of {', '.join(ALPHA_SCHEDULES)}, got {alpha_schedule!r}")
        self.alpha, self.alpha_schedule, self.progress = alpha, alpha_schedule, 0.0
        self.normalise, self.teacher_loss = normalise, teacher_loss
        norms = [isinstance(module, BATCH_NORMS) for module in model.backbone.modules()]
        self.shared_vectors = any(norms) if shared_vectors is None else shared_vectors
        self.chain = chain
        self.student = SupervisedMethod(ReIDModel(chain.student()), num_ids, **losses)
        self._decoder = Decoder(chain.groups, chain.slots())
        self._declare()

    @classmethod
    def from_run(cls, run: RunContext) -> Self:
        """Build the method for a run whose model is the teacher; see `Method.from_run`.

        Parts: "chain", the teacher's `WeightChain`.
        """
        chain = run.part("chain", "`reid-hub refine`, which clusters the teacher")
        return cls(run.model, run.num_ids, chain=chain, **run.options).start_from(run)

    def _declare(self) -> None:
        """Sort the tensors by where the student gets them from, and switch off the gradient of those it never reads."""
        links, axes = self.chain.links.tensors(), self.chain.groups.axes
        self._weights = [name for name, link in links.items() if name in axes and link.ndim > 1]
        # The neck's norm is the student's own, like its classifier and its running statistics.
        self._kept = [name for name, link in links.items() if link.ndim == 1 and is_fitted(name)]
        kept = set(self._kept)
        vectors = [name for name, link in links.items() if name in axes and link.ndim == 1 and name not in kept]
        self._vectors = [] if self.shared_vectors else vectors
        self._borrowed = [name for name in links if name not in {*self._weights, *self._vectors, *kept}]
        decoded = {*self._weights, *self._vectors, *self._borrowed}
        for name, parameter in self.chain.links.named_parameters():
            parameter.requires_grad_(name in self._weights or name in self._vectors)
        for name, parameter in self.student.model.named_parameters():
            parameter.requires_grad_(name not in decoded)
        if not self.teacher_loss:
            # Nothing reads the teacher's classifier and the norm in front of it: no decay may touch them.
            for name, parameter in self.named_parameters():
                if name.startswith("classifier.") or name.removeprefix("model.") in kept:
                    parameter.requires_grad_(False)

    def student_tensors(self) -> dict[str, Tensor]:
        """The student's tensors, decoded from the chain and from the teacher, differentiable."""
        links, teacher = self.chain.links.tensors(), dict(self.model.named_parameters())
        source = {name: links[name] for name in (*self._weights, *self._vectors)}
        source |= {name: teacher[name] for name in self._borrowed}
        return self._decoder(source)

    def reference_loss(self) -> Tensor:
        """L_ref: squared distance of the teacher's rows to the chain's, and of vectors where they are copies."""
        teacher, links = dict(self.model.named_parameters()), self.chain.links.tensors()
        terms = []
        for name in self._weights:
            rows = links[name].index_select(0, self.chain.row_index(name))
            terms.append((teacher[name] - rows).square().sum() / (len(links[name]) if self.normalise else 1))
        for name in self._vectors:
            size = links[name].numel() if self.normalise else 1
            terms.append((teacher[name] - links[name]).square().sum() / size)
        return torch.stack(terms).mean() if self.normalise else torch.stack(terms).sum()

    def set_progress(self, step: int, total_steps: int, epoch: float) -> None:
        self.progress = min((step + 1) / max(total_steps, 1), 1.0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.student_tensors().items()}
        student = functional_call(self.student, tensors, (batch,))
        reference = self.reference_loss()
        alpha = self.alpha * (self.progress if self.alpha_schedule == "ramp" else 1.0)
        loss, parts = student["loss"] + alpha * reference, {}
        if self.teacher_loss:
            teacher = super().forward(batch)
            loss, parts = loss + teacher["loss"], _named("teacher", teacher)
        return {"loss": loss, **parts, **_named("student", student), "reference": reference.detach()}

    @torch.no_grad()
    def export(self) -> WeightChain:
        """The chain, with the vectors and statistics that teacher and student have by now."""
        links, teacher, student = self.chain.links.tensors(), self.model.state_dict(), self.student.model.state_dict()
        for name in self._borrowed:
            links[name].copy_(teacher[name])
        for name in self._kept:
            links[name].copy_(student[name][self.chain.row_index(name)])
        return self.chain

    def training_state(self) -> dict[str, Tensor]:
        """The narrowest student's classifier and centers."""
        return self.student.training_state()

    def teacher_state(self) -> dict[str, Tensor]:
        """The teacher's."""
        return {name: value for name, value in self.state_dict().items() if name.startswith(("classifier", "centers"))}


def _named(prefix: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{name}": value for name, value in parts.items() if name != "loss"}
