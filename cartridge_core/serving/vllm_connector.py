"""Cartridges in unmodified vLLM: a KV connector that writes them into paged blocks. The only file that imports vllm.

To vLLM a Cartridge is a prefix of placeholder tokens whose keys and values come from elsewhere. Its scheduler asks how
many tokens can be had (`get_num_new_matched_tokens`), gives out blocks, and has the workers write them. A Cartridge in
host memory is written in the step that reads it; another is loaded in a thread while other requests go on.

vLLM calls connectors experimental: made for 0.32, and held to it by the equality tests.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorTransferResults
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import AttentionSpec, FullAttentionSpec, SlidingWindowSpec

from cartridge_core.errors import CartridgeError
from cartridge_core.serving.attached_requests import AttachedRequests, Orders, Write
from cartridge_core.serving.attachment import attachment_key
from cartridge_core.serving.engine_cartridges import EngineCartridges, LayerShape, Shard
from cartridge_core.serving.kv_blocks import slots
from cartridge_core.serving.residency import DEFAULT_CACHE_BYTES, Residency
from cartridge_core.settings import Settings

NAME = "CartridgeConnector"
"""What `--kv-transfer-config` calls it."""

_IDLE_WAIT_S = 0.005
"""How long a worker that has nothing else to do waits for a load before it looks for new requests."""

log = init_logger(f"vllm.{__name__}")


def register() -> None:
    """Make the connector known to vLLM; its `vllm.general_plugins` entry point, called in each of its processes."""
    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, __name__, NAME)


@dataclass
class CartridgeMetadata(KVConnectorMetadata):
    """What the scheduler tells the workers with a step."""

    orders: Orders


class CartridgeConnector(KVConnectorBase_V1, SupportsHMA):
    """vLLM makes one for its scheduler and one for each worker; the side that is not its own stays unused."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = AttachedRequests(
                attachment_key(Settings()),
                _bytes_per_token(vllm_config, kv_cache_config),
                Residency(int(extra.get("cache_bytes", DEFAULT_CACHE_BYTES))),
                log,
            )
        else:
            self._worker = _WorkerSide(vllm_config, kv_cache_config, Settings())

    # Scheduler.

    def on_new_request(self, request: Any) -> None:
        """Read what came with a request; must not raise, which would end the engine."""
        self._scheduler.admit(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens of the front that are not in this engine's blocks, and whether they take a load."""
        return self._scheduler.missing(request.request_id, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Blocks are there: have them written."""
        if num_external_tokens > 0:
            self._scheduler.order(request.request_id, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> CartridgeMetadata:
        """What the workers have to do in this step."""
        return CartridgeMetadata(self._scheduler.hand_over(idle=scheduler_output.total_num_scheduled_tokens == 0))

    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers have done."""
        self._scheduler.settle(connector_output.finished_recving or set(), connector_output.failed_recving or set())

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks are vLLM's."""
        self._scheduler.forget(request.request_id)
        return False, None

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """As `request_finished_all_groups`."""
        return self.request_finished_all_groups(request, (block_ids,))

    # Worker.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write what is in memory, begin to load what is not."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, CartridgeMetadata)
        self._worker.begin(metadata.orders)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Write what was loaded meanwhile."""
        finished, failed = self._worker.finish()
        return KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: what a step reads is written before it."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: Cartridges are read only."""

    def wait_for_save(self) -> None:
        """Nothing."""

    def shutdown(self) -> None:
        """Stop loading."""
        if self.role == KVConnectorRole.WORKER:
            self._worker.close()


class _WorkerSide:
    """Keys and values of this worker's heads, on their way into its blocks."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._layers = vllm_config.compilation_config.static_forward_context
        self._groups = [
            (group.kv_cache_spec.block_size, tuple(group.layer_names)) for group in kv_cache_config.kv_cache_groups
        ]
        shapes = {
            name: LayerShape(extract_layer_index(name), spec.num_kv_heads, spec.head_size)
            for name, spec in _attention_layers(kv_cache_config)
        }
        self._cartridges = EngineCartridges(
            settings,
            shapes,
            vllm_config.model_config.dtype,
            get_tensor_model_parallel_rank(),
            get_tensor_model_parallel_world_size(),
            pinned=torch.cuda.is_available(),
        )
        self._waiting: list[tuple[Write, Future[Shard]]] = []
        self._refused: set[str] = set()
        self._idle = False

    def begin(self, orders: Orders) -> None:
        self._idle = orders.idle
        for write in orders.writes:
            if write.loaded:
                self._write(write, self._cartridges.shard(write.front))
        for front in orders.drop:
            self._cartridges.drop(front)
        for write in orders.writes:
            if not write.front:
                self._refused.add(write.request_id)
            elif not write.loaded:
                self._waiting.append((write, self._cartridges.load(write.tenant, write.front, write.end)))

    def finish(self) -> tuple[set[str], set[str]]:
        """Requests whose loads have ended, and those of them that have failed."""
        finished, self._refused = self._refused, set()
        failed = set(finished)
        if self._idle and self._waiting and not finished:
            EngineCartridges.wait([future for _, future in self._waiting], _IDLE_WAIT_S)
        still = []
        for write, future in self._waiting:
            if not future.done():
                still.append((write, future))
                continue
            finished.add(write.request_id)
            error = future.exception()
            if error is None:
                self._write(write, future.result())
            else:
                failed.add(write.request_id)
                log.error("Request %s: its Cartridge cannot be loaded: %s", write.request_id, error)
        self._waiting = still
        return finished, failed

    def close(self) -> None:
        self._cartridges.close()

    def _write(self, write: Write, shard: Shard) -> None:
        for (block_size, names), block_ids in zip(self._groups, write.block_ids, strict=True):
            positions, places = slots(block_ids, block_size, write.start, write.end)
            if not len(positions):
                continue
            for name in names:
                layer = self._layers[name]
                device = layer.kv_cache.device
                key, value = (
                    side.to(device, non_blocking=True) if len(positions) == len(side) else side[positions].to(device)
                    for side in shard.layers[name]
                )
                # The backend's own way: how a cache lies in memory differs between them.
                layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, places.to(device))


def _attention_layers(kv_cache_config: Any) -> list[tuple[str, AttentionSpec]]:
    found = []
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        for name in group.layer_names:
            own = getattr(spec, "kv_cache_specs", {}).get(name, spec)
            # Subclasses keep something else: latents, states, compressed or chunked keys.
            if type(own) not in (FullAttentionSpec, SlidingWindowSpec):
                raise CartridgeError(
                    f"{name} keeps {type(own).__name__}, not keys and values of each token.",
                    "Cartridges need a model with plain attention.",
                )
            found.append((name, own))
    return found


def _bytes_per_token(vllm_config: Any, kv_cache_config: Any) -> int:
    """Of one worker's keys and values, as its host memory holds them."""
    values = sum(2 * spec.num_kv_heads * spec.head_size for _, spec in _attention_layers(kv_cache_config))
    return values * vllm_config.model_config.dtype.itemsize
