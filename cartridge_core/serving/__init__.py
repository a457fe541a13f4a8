"""Serving: from a model's name to an answer through the Cartridge that the catalog names."""
