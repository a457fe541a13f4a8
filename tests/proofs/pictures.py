"""`make pictures`: what people see of the platform, taken in a real Chromium from services that trained a Cartridge.

Starts the services as `make stack-test` does, trains the corpus "clinic" by the deployment, opens the pages, and writes
docs/images. A page that lacks a text which it should show is a failure. Nothing outside this machine is asked.
"""

import argparse
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from mlflow.exceptions import MlflowException
from playwright.sync_api import Error
from rich.console import Console

from cartridge_core.reference.samples import Sample
from cartridge_core.reference.world import Scale
from tests.browser.chromium import NoChromiumError, chromium
from tests.compose_file import ROOT
from tests.native_process import StackError
from tests.proofs.camera import Camera, PictureError
from tests.proofs.native_stack import NativeStack
from tests.proofs.stack_run import run_deployment, start_all, write_documents

CORPUS = "clinic"
SAMPLE = Sample("clinic-records", Scale(8, 3, documents=1), 20)
IMAGES = ROOT / "docs/images"
RUN = f"train {CORPUS} · reference · p=32"
STAGES = ("ingest-corpus", "synthesize-conversations", "fit-cartridge", "evaluate-cartridge", "register-cartridge")
ARMS = ("No context", "ICL, whole corpus", "ICL, truncated", "Cartridge, self-study")


def photograph(camera: Camera, prefect: str, run: str) -> None:
    """All pictures.

    Args:
        camera: Takes them.
        prefect: Address of Prefect's server.
        run: Id of the finished `train-cartridge` run.
    """
    api = f"{prefect}/api"
    deployments = httpx.get(f"{api}/deployments/name/train-cartridge/train-cartridge", timeout=30).json()
    ask_for_a_run(camera, f"{prefect}/v2/deployments/deployment/{deployments['id']}/run")

    runs = {one["flow_id"]: one["id"] for one in found(f"{api}/flow_runs/filter")}
    flows = {one["name"]: one["id"] for one in found(f"{api}/flows/filter")}
    camera.open(f"{prefect}/v2/runs/flow-run/{run}?tab=SubflowRuns")
    camera.take("prefect-run", RUN, "Completed", *STAGES, "promote-cartridge")
    camera.open(f"{prefect}/v2/runs/flow-run/{runs[flows['fit-cartridge']]}?tab=Artifacts")
    camera.take("prefect-training", f"fit {CORPUS}", "held out", "loss-curve", "fit-cartridge-result", height=620)

    artifacts = {one["key"]: one["id"] for one in found(f"{api}/artifacts/filter")}
    camera.open(f"{prefect}/v2/artifacts/artifact/{artifacts['loss-curve']}")
    camera.take("prefect-loss-curve", f"Loss of the Cartridge of {CORPUS}", f"fit {CORPUS}", height=550)
    camera.open(f"{prefect}/v2/artifacts/artifact/{artifacts['cartridge']}")
    camera.take("prefect-artifact", RUN, "Promoted:", "The Cartridge keeps", *ARMS, "In MLflow:")
    # As somebody goes on from there.
    links = camera.page.get_by_role("link", name=re.compile(rf"{CORPUS}\.reference v1"))
    camera.open(str(links.first.get_attribute("href")))
    camera.see("Version 1")
    with suppress(Error):
        # MLflow's assistant opens by itself, once.
        camera.page.get_by_role("button", name="Close").click(timeout=20_000)
    told = ("Version 1", "champion", "The Cartridge keeps", *ARMS, "acc_vs_icl", "cartridge_digest", "passed")
    camera.take("mlflow-version", *told, height=1150)
    camera.page.get_by_role("link", name=f"cartridge-{CORPUS}").click()
    camera.take(
        "mlflow-model", f"cartridge-{CORPUS}", "self_study_accuracy", "icl_accuracy", "memory_ratio", height=1150
    )


def ask_for_a_run(camera: Camera, form: str) -> None:
    """The deployment's form as it is filled in, and how it refuses a name."""
    camera.open(form)
    texts = ("Name of the corpus.", "Virtual tokens of the Cartridge", "hand_off_gpu_steps", "Enforce Parameter Schema")
    camera.see(*texts)
    page = camera.page
    page.locator("textarea").first.fill(CORPUS)
    page.get_by_role("button", name="Add item").click()
    page.locator("textarea").nth(1).fill("/documents")
    camera.take("prefect-form", *texts)
    page.locator("textarea").first.fill("Clinic Records!")
    page.get_by_role("button", name="Submit").click()
    camera.take("prefect-refusal", "'Clinic Records!' does not match", "Validation failed", height=640, settle_ms=1_000)


def found(address: str) -> list[dict[str, Any]]:
    """What a filter of Prefect's API finds without a condition."""
    answer: list[dict[str, Any]] = httpx.post(address, json={}, timeout=30).raise_for_status().json()
    return answer


def main() -> int:
    """Take the pictures; 1 where a page is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the pictures go")
    options = parser.parse_args()
    say, state = Console(), Path(tempfile.mkdtemp(prefix="pictures-"))
    stack = NativeStack(state, write_documents(SAMPLE, state / "documents"), "cpu")
    try:
        with chromium() as browser:
            start_all(stack, say, but=(stack.gateway,))
            run = run_deployment(stack, CORPUS, seconds=900)
            photograph(Camera(browser, options.images, say), stack.url("prefect"), run)
    except (NoChromiumError, PictureError, StackError, MlflowException, httpx.HTTPError, Error) as error:
        say.print(f"{error}\nLogs are in {state}/logs", style="red", markup=False)
        return 1
    finally:
        with suppress(KeyboardInterrupt):
            stack.stop()
    shutil.rmtree(state, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
