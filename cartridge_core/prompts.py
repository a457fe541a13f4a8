"""The one sentence around a text that a model is asked to know."""

SYSTEM_TEMPLATE = "You know the following text by heart. Answer from it alone and never mention it.\n\n{text}"
"""System message that wraps a chunk (self-study) or the whole corpus (in-context learning); a Cartridge replaces it."""
