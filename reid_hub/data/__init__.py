"""Data sets as Hugging Face `datasets`, and the input pipeline that makes training batches of them."""

from reid_hub.data.datasets import DATASETS
from reid_hub.data.decoding import check_images, decode_image
from reid_hub.data.describe import camera_note, describe_splits
from reid_hub.data.hub_set import push_reid_dataset
from reid_hub.data.loading import load_reid_dataset
from reid_hub.data.records import DatasetSpec

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "camera_note",
    "check_images",
    "decode_image",
    "describe_splits",
    "load_reid_dataset",
    "push_reid_dataset",
]
