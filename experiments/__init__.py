"""The measured claims of jaxreg's methods. `python -m experiments list` shows them."""
