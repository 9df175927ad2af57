"""Claims about predictions that say how much they can be trusted."""
