"""Claims about policies."""
