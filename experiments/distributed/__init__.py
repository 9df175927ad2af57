"""Claims about training on many clients or devices."""
