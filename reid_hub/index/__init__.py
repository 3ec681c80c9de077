"""Gallery search: vectors with string ids, exact nearest neighbours, one folder on disk or a vector database."""

from reid_hub.index.database import DatabaseIndex
from reid_hub.index.gallery import GalleryIndex
from reid_hub.models.codes import CODECS

__all__ = ["CODECS", "DatabaseIndex", "GalleryIndex"]
