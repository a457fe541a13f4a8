"""What training gives back."""

from dataclasses import dataclass

from cartridge_core.cartridge import Cartridge
from cartridge_core.training.curve import LossCurve
from cartridge_core.training.held_out import HeldOutScore


@dataclass(frozen=True)
class TrainingResult:
    """A trained Cartridge and how it came about."""

    cartridge: Cartridge
    """The best of the run, by held-out loss."""
    curve: LossCurve
    """Loss of every step and every look."""
    best_step: int
    """Steps that the Cartridge was trained for."""
    best: HeldOutScore
    """Its held-out score."""
    initial: HeldOutScore
    """The held-out score before the first step."""
    steps: int
    """Steps taken in all."""
    stopped_early: bool
    """Whether patience ran out before the configured number of steps."""
    num_examples: int
    """Examples to train on."""
    num_held_out: int
    """Held-out examples."""
    num_unfit: int
    """Conversations left out because they are longer than a row, or than the positions behind the Cartridge."""
    seconds: float
    """Wall time, initialisation and held-out looks included."""
