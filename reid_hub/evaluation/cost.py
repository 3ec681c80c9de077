"""Cost of a model: parameters, multiply-adds, bytes per stored vector, measured latency."""

import platform
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reid_hub.errors import ReIDError
from reid_hub.evaluation.sections import Cost

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WARM_UP = 3


def measure_cost(
    model: nn.Module, image_size: Sequence[int] | None = None, *, repeats: int = 20, dtype: torch.dtype = torch.float32
) -> Cost:
    """Measure a model on its device, with one image, in evaluation mode.

    Args:
        model: a `ReIDModel`, or any module (1, 3, H, W) -> (1, D).
        image_size: (height, width) (default: that of the model's config).
        repeats: number of forward passes; the latency is their median.
        dtype: type in which gallery vectors are stored.

    Returns:
        parameters: number of parameters, including frozen ones, without running statistics.
        macs: multiply-adds of convolution and linear layers, counted each time a layer runs.
        attention_macs: multiply-adds of all other matrix products, such as those of attention.
        bytes_per_vector: embedding dimension times the size of `dtype`; None for a classifier.
        latency_ms: median time of one forward pass at batch size 1, after warm-up, in milliseconds.
        latency_threads, latency_device: CPU threads of torch and name of the processor at that measurement.
        image_size: [height, width].

    Raises:
        ValueError: if the image size is unknown or `repeats` is below 1.
    """
    image_size = image_size or getattr(getattr(model, "config", None), "image_size", None)
    if image_size is None or len(image_size) != 2:
        raise ReIDError(f"image_size must be (height, width), got {image_size}; the model has none in its config")
    if repeats < 1:
        raise ReIDError(f"repeats must be at least 1, got {repeats}")
    parameter = next(model.parameters())
    images = torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
    with evaluation_mode(model), torch.inference_mode():
        macs, products, embeddings = count_macs(model, images)
        latency = _latency(model, images, repeats)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs,
        attention_macs=products - macs,
        bytes_per_vector=embeddings.shape[1] * dtype.itemsize if isinstance(embeddings, Tensor) else None,
        latency_ms=round(1000 * latency, 3),
        latency_threads=torch.get_num_threads(),
        latency_device=_device_name(images.device),
        image_size=list(image_size),
    )


def count_macs(model: nn.Module, images: Tensor) -> tuple[int, int, Tensor]:
    """Multiply-adds of convolution and linear layers, of all matrix products and convolutions, and the embeddings.

    For a classifier, returns its output in place of embeddings. Also works on the meta device, without computing.
    """
    counted = 0

    def count(module: nn.Module, _, output: Tensor) -> None:
        nonlocal counted
        # Each output is a dot product with one row of the weight, of length (in / groups) * kernel or in_features.
        counted += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with FlopCounterMode(display=False) as flops:
            output = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return counted, flops.get_total_flops() // 2, getattr(output, "embeddings", output)


def _latency(model: nn.Module, images: Tensor, repeats: int) -> float:
    seconds = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP:])


@contextmanager
def evaluation_mode(model: nn.Module):
    """Use evaluation mode inside the block, then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
