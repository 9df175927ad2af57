"""Fewer bits and fewer weights: quantization, pruning, number formats."""

from jaxreg.compression.rf8 import rf8_quantize
from jaxreg.compression.structured import alive_units, extract_subnetwork

__all__ = ["alive_units", "extract_subnetwork", "rf8_quantize"]
