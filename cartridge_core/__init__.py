"""Cartridge Foundry: trained KV caches that stand in for long corpora (arXiv 2506.06266)."""

__version__ = "0.1.0"
