"""TF-IDF vectors of texts, which scikit-learn makes."""

from __future__ import annotations

from typing import Any

from ..errors import AlphaEditError


def vectorizer(what: str, **settings: Any) -> Any:
    """scikit-learn's `TfidfVectorizer`. Raises AlphaEditError, saying that `what` needs it, if it is not installed."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as failure:
        raise AlphaEditError(f"{what} needs scikit-learn: pip install 'alphaedit-plugin[evaluation]'") from failure
    return TfidfVectorizer(**settings)
