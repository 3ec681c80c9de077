"""Models: flat files that are copied into every checkpoint (see `trust_remote_code` in transformers)."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from reid_hub.compat import register_backbone
from reid_hub.models.backbones import list_variants
from reid_hub.models.classification_reid import ReIDBackbone, ReIDBackboneConfig, ReIDForImageClassification
from reid_hub.models.configuration_reid import ReIDConfig
from reid_hub.models.image_processing_reid import ReIDImageProcessor
from reid_hub.models.modeling_reid import ReIDModel, ReIDOutput
from reid_hub.models.weight_chain import WeightChain, WeightChainConfig

__all__ = [
    "ReIDBackbone",
    "ReIDBackboneConfig",
    "ReIDConfig",
    "ReIDForImageClassification",
    "ReIDImageProcessor",
    "ReIDModel",
    "ReIDOutput",
    "WeightChain",
    "WeightChainConfig",
    "list_variants",
    "register",
]


def register() -> None:
    """Register the models with transformers' Auto classes, and save their code with checkpoints."""
    AutoConfig.register(ReIDConfig.model_type, ReIDConfig, exist_ok=True)
    AutoModel.register(ReIDConfig, ReIDModel, exist_ok=True)
    AutoModelForImageClassification.register(ReIDConfig, ReIDForImageClassification, exist_ok=True)
    AutoConfig.register(ReIDBackboneConfig.model_type, ReIDBackboneConfig, exist_ok=True)
    AutoBackbone.register(ReIDBackboneConfig, ReIDBackbone, exist_ok=True)
    # `AutoBackbone.register` accepts one configuration class per model, but every checkpoint of ours has a backbone.
    register_backbone(ReIDConfig, ReIDBackbone)
    AutoConfig.register(WeightChainConfig.model_type, WeightChainConfig, exist_ok=True)
    AutoModel.register(WeightChainConfig, WeightChain, exist_ok=True)
    AutoImageProcessor.register(
        ReIDConfig,
        image_processor_classes={"pil": ReIDImageProcessor, "torchvision": ReIDImageProcessor},
        exist_ok=True,
    )
    for config in (ReIDConfig, ReIDBackboneConfig, WeightChainConfig):
        config.register_for_auto_class()
    for model in (ReIDModel, WeightChain):
        model.register_for_auto_class("AutoModel")
    ReIDForImageClassification.register_for_auto_class("AutoModelForImageClassification")
    ReIDBackbone.register_for_auto_class("AutoBackbone")
    ReIDImageProcessor.register_for_auto_class()
