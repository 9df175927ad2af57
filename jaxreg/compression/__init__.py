"""Fewer bits and fewer weights: quantization, pruning, number formats."""

from jaxreg.compression.quantization import fake_quant_int4
from jaxreg.compression.rf8 import rf8_quantize
from jaxreg.compression.structured import alive_units, extract_subnetwork

__all__ = ["alive_units", "extract_subnetwork", "fake_quant_int4", "rf8_quantize"]
