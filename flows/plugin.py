"""Prefect plugin: `prefect deployment run NAME` means `NAME/NAME` when NAME has no slash.

Prefect has no short form of its own (3.8 refuses a name without a slash). The entry point is public; the patched method
is not, hence the bound on Prefect's version and the test that runs the literal command. `NAME/NAME` always works.

Prefect loads this at `import prefect` where plugins are enabled: by a `prefect.toml` in the working directory that says
so, or by PREFECT_PLUGINS_ENABLED=1.
"""

from functools import wraps
from typing import Any

from prefect.plugins import register_hook

PREFECT_PLUGIN_API_REQUIRES = ">=0.1,<1"


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Teach the client that reads deployments the short name; doing it twice changes nothing."""
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient

    original = DeploymentAsyncClient.read_deployment_by_name
    if getattr(original, "reads_short_names", False):
        return

    @wraps(original)
    async def read_deployment_by_name(self: Any, name: str) -> Any:
        return await original(self, name if "/" in name else f"{name}/{name}")

    read_deployment_by_name.reads_short_names = True  # type: ignore[attr-defined]
    DeploymentAsyncClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign]
