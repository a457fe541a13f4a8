"""Names of flow runs: what is done to which corpus, with which model, at which size."""

from collections.abc import Callable
from pathlib import Path

from prefect.runtime import flow_run

from cartridge_core.settings import Settings


def run_name(verb: str) -> Callable[[], str]:
    """What names a run, for `@flow(flow_run_name=...)`: such as `train clinic · reference · p=256`.

    Args:
        verb: What the flow does.
    """

    def name() -> str:
        told = flow_run.get_parameters()
        parts = [f"{verb} {told['corpus'] if 'corpus' in told else ', '.join(told['corpora'])}"]
        if "model" in told:
            parts.append(Path(told["model"] or Settings().base_model).name)
        if "num_tokens" in told:
            parts.append(f"p={told['num_tokens'] or 'auto'}")
        return " · ".join(parts)

    return name
