"""The workplace that these tests work in."""

from tests.talkative import talkative, workplace

__all__ = ["talkative", "workplace"]
