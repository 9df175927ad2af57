"""Claims about unlearning."""
