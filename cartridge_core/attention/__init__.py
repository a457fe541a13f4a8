"""Attention behind one shared prefix: the one way in which keys and values of a Cartridge enter a stock model.

A batch that follows one Cartridge (or one prefilled text) reads the same prefix keys in every row. Copying them into
each row's cache costs memory and time in proportion to batch x prefix; here the prefix is kept once and all queries
meet it in one matrix product (the arrangement of Hydragen, arXiv 2402.05099). The result is that of plain attention
over the concatenated keys, gradients to the prefix included, on any model that calls transformers' attention interface.

There are two layouts of what follows the prefix: a batch with a row a text (`behind`: generation, scoring), and packed
rows that hold several texts blind to each other (`packed_behind`: training). Both have one core, `dense`; packed rows
can also go through FlexAttention (`flex`), which is what a GPU wants.
"""

from cartridge_core.attention.interface import NAME, behind, install, left_uncompiled, packed_behind
from cartridge_core.attention.kernel import Kernel, choose_kernel

__all__ = ["NAME", "Kernel", "behind", "choose_kernel", "install", "left_uncompiled", "packed_behind"]
