"""Claims about models with structure."""
