"""Where a Cartridge's keys and values start before training: one file an initialiser, named in `initializers`.

This package itself imports nothing, so that a training configuration can name options without loading torch.
"""
