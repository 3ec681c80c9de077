"""What a student gets for its training and loses for its use: regressors of what each teacher says of its view."""

from torch import Tensor, nn

from reid_hub.models.embedding_layer import LinearEmbedding
from reid_hub.models.pooling import StabilisedMaxPool


class FeatureMapBranch(nn.Module):
    """FMFB: a feature map (B, C, h, w) to a teacher's vector (B, D); Factorized Distillation, arXiv:1811.08073.

    1x1 convolution to `width` channels, BN, ReLU; stabilised max pooling; FC, BN. No biases in front of norms.

    Attributes:
        select: the first step alone, the features that the view asks for: (B, width, h, w).
    """

    def __init__(self, channels: int, dim: int, width: int = 512, window: int = 4):
        super().__init__()
        self.select = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = StabilisedMaxPool(window=window)
        self.embed = LinearEmbedding(width, dim=dim)
        self.apply(_initialise)

    def forward(self, feature_map: Tensor) -> Tensor:
        return self.embed(self.pool(self.select(feature_map)))


class RepresentationBranch(nn.Module):
    """RFB: the student's embedding (B, E) to a teacher's vector (B, D); Factorized Distillation, arXiv:1811.08073.

    For a part of the image, features are selected first: FC to `width`, BN, ReLU. Then FC, BN.
    """

    def __init__(self, embedding_dim: int, dim: int, whole: bool, width: int = 512):
        super().__init__()
        self.select = nn.Identity() if whole else LinearEmbedding(embedding_dim, dim=width, relu=True)
        self.embed = LinearEmbedding(embedding_dim if whole else width, dim=dim)
        self.apply(_initialise)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.embed(self.select(embeddings))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
