"""Whether loading Cartridges holds up those who are being answered: the gaps between a running answer's words."""

import threading
import time
from collections.abc import Sequence

import httpx

from tests.proofs.http_load import median
from tests.proofs.serving_arms import Corpora, behind

_WORDS = 400


def stall_figures(url: str, small: Corpora, large: Corpora) -> dict[str, float]:
    """Gaps in milliseconds of one answer behind a loaded Cartridge: alone, then while large ones are loaded cold.

    Args:
        url: Of vLLM.
        small: The running answer's Cartridge.
        large: Cartridges that the engine has not seen; each is asked about once, one after the other.
    """
    body = behind(small, [0])[0] | {"max_tokens": _WORDS}
    _gaps(url, body)
    alone = _gaps(url, body)
    loads: list[float] = []
    ready = threading.Event()

    def load() -> None:
        with httpx.Client(timeout=300) as client:
            for cold in behind(large, range(len(large.cartridges))):
                attachment = cold["kv_transfer_params"]["cartridge_attachment"]
                # Onto this machine's disk first, as the gateway does: what is measured is disk to blocks.
                client.post(f"{url}/cartridges/load", json={"attachment": attachment}).raise_for_status()
            ready.wait()
            for cold in behind(large, range(len(large.cartridges))):
                started = time.perf_counter()
                asked = cold | {"max_tokens": 1, "stream": False, "stream_options": None}
                client.post(f"{url}/v1/completions", json=asked).raise_for_status()
                loads.append(1000 * (time.perf_counter() - started))

    thread = threading.Thread(target=load)
    thread.start()
    ready.set()
    beside = _gaps(url, body)
    thread.join()
    return {
        "gap_ms_p50_alone": median(alone),
        "gap_ms_max_alone": max(alone),
        "gap_ms_p50_while_loading": median(beside),
        "gap_ms_max_while_loading": max(beside),
        "cold_answer_ms_p50": median(loads),
        "cold_bytes_each": float(large.cartridges[0].kv_bytes),
    }


def _gaps(url: str, body: dict[str, object]) -> Sequence[float]:
    seen, gaps = 0.0, list[float]()
    with httpx.Client(timeout=300) as client, client.stream("POST", f"{url}/v1/completions", json=body) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter()
            if seen:
                gaps.append(1000 * (now - seen))
            seen = now
    assert len(gaps) >= _WORDS - 2, gaps
    return gaps
