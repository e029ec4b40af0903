"""Choosing the bits of every weight and every layer's input of any model, while it trains."""

from lightning_effnn.search.bits.choice import BitChoice
from lightning_effnn.search.bits.costs import COSTS, bit_cost
from lightning_effnn.search.bits.search import BitSearch

__all__ = ["COSTS", "BitChoice", "BitSearch", "bit_cost"]
