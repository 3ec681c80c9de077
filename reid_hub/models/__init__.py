"""Models: flat files that travel with every checkpoint (see `trust_remote_code` in transformers)."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from reid_hub.models.configuration_reid import ReIDConfig
from reid_hub.models.image_processing_reid import ReIDImageProcessor
from reid_hub.models.modeling_reid import ReIDModel, ReIDOutput
from reid_hub.models.variants_reid import list_variants

__all__ = ["ReIDConfig", "ReIDImageProcessor", "ReIDModel", "ReIDOutput", "list_variants", "register"]


def register() -> None:
    """Make the Auto classes of transformers know our classes, and our checkpoints carry their code."""
    AutoConfig.register(ReIDConfig.model_type, ReIDConfig, exist_ok=True)
    AutoModel.register(ReIDConfig, ReIDModel, exist_ok=True)
    AutoImageProcessor.register(
        ReIDConfig,
        image_processor_classes={"pil": ReIDImageProcessor, "torchvision": ReIDImageProcessor},
        exist_ok=True,
    )
    ReIDConfig.register_for_auto_class()
    ReIDModel.register_for_auto_class("AutoModel")
    ReIDImageProcessor.register_for_auto_class()
