"""Learning one task after the other."""

from jaxreg.continual.routing import select_adapter, tfidf_similarity

__all__ = ["select_adapter", "tfidf_similarity"]
