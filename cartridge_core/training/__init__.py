"""Training: a Cartridge's keys and values are fitted to a study's conversations, or to the corpus's own text."""
