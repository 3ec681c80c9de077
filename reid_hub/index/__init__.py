"""Gallery search: vectors with string ids, exact nearest neighbours, one folder on disk."""

from .codecs import CODECS
from .gallery import GalleryIndex

__all__ = ["CODECS", "GalleryIndex"]
