"""Generation and scoring behind a prefix, in this process."""
