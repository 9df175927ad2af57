"""Fewer bits and fewer weights: quantization, pruning, number formats."""

from jaxreg.compression.rf8 import rf8_quantize

__all__ = ["rf8_quantize"]
