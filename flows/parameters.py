"""Types of the flows' parameters: their limits stand in the deployment's form and refuse a bad value at submission.

What a parameter means is said in each flow's docstring, which Prefect shows beside it.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cartridge_core.initialization.options import OPTIONS
from cartridge_core.settings import NAME_PATTERN

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
"""Of a corpus or an alias."""
Corpora = Annotated[list[Name], Field(min_length=2)]
"""Names of corpora that something is learnt from together."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]
"""The beginning of a digest; empty for the newest."""
Paths = Annotated[list[Path], Field(min_length=1)]
"""Files and folders."""
NumTokens = Annotated[int, Field(ge=2, le=131_072)]
"""Virtual tokens; the paper's largest Cartridge has 2,048."""
NumConversations = Annotated[int, Field(ge=1, le=10_000_000)]
"""Conversations of a study."""
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
"""Optimizer steps."""
Rounds = Annotated[int, Field(ge=1, le=1_000)]
"""Rounds of a learned start."""
NoOrSteps = Annotated[int, Field(ge=0, le=1_000_000)]
"""Optimizer steps of a phase that may be left out."""
LearningRate = Annotated[float, Field(gt=0, le=100)]
"""Peak learning rate."""
Share = Annotated[float, Field(ge=0, le=2)]
"""Share of in-context learning's score."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""From none to all: a mean score, or how many of the questions."""
NumQuestions = Annotated[int, Field(ge=1, le=1_000_000)]
"""Questions that a decision rests on."""
Teachers = list[Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*$")]] | None
"""Root addresses of vLLM servers."""
Seed = Annotated[int, Field(ge=0, lt=2**53)]
"""Seed of draws; as large as a browser can say exactly."""
Initialization = Annotated[str, Field(json_schema_extra={"enum": list(OPTIONS)})]
"""Name of an initialiser; the form offers those that there are."""
Processes = Annotated[int, Field(ge=1, le=64)]
"""Processes of one machine."""
