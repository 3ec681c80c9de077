"""Gallery search: exact nearest neighbours of vectors with string ids, in a folder on disk or in a vector database."""

from reid_hub.index.database import DatabaseIndex
from reid_hub.index.gallery import GalleryIndex
from reid_hub.models.codes import CODECS

__all__ = ["CODECS", "DatabaseIndex", "GalleryIndex"]
