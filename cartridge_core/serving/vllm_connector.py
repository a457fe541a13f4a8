"""Cartridges in unmodified vLLM: a KV connector that writes them into paged blocks. The only file that imports vllm.

To vLLM a Cartridge is a prefix of placeholder tokens whose keys and values come from elsewhere. Its scheduler asks how
many tokens can be had (`get_num_new_matched_tokens`), gives out blocks, and has the workers write them. A Cartridge in
host memory is written in the step that reads it; another is loaded in a thread while other requests go on.

vLLM calls connectors experimental: made for 0.32, and held to it by the equality tests.
"""

import secrets
from concurrent.futures import Future
from dataclasses import dataclass, field
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
from cartridge_core.serving.attachment import PARAMETER, Attachment, AttachmentError, attachment_key
from cartridge_core.serving.engine_cartridges import EngineCartridges, LayerShape, Shard
from cartridge_core.serving.kv_blocks import slots
from cartridge_core.serving.residency import Front, Residency
from cartridge_core.settings import Settings

NAME = "CartridgeConnector"
"""What `--kv-transfer-config` calls it."""

DEFAULT_CACHE_BYTES = 4 << 30
"""Most bytes of Cartridges in a worker's host memory, unless the connector's configuration says otherwise."""

_IDLE_WAIT_S = 0.005
"""How long a worker that has nothing else to do waits for a load before it looks for new requests."""

log = init_logger(f"vllm.{__name__}")


def register() -> None:
    """Make the connector known to vLLM; its `vllm.general_plugins` entry point, called in each of its processes."""
    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, __name__, NAME)


@dataclass(frozen=True)
class Write:
    """Positions `[start, end)` of a request that a front's keys and values go to; without a front it has to fail."""

    request_id: str
    tenant: str
    front: Front
    start: int
    end: int
    block_ids: tuple[list[int], ...]
    """The request's blocks, one list a KV cache group."""
    loaded: bool
    """Whether the front is in the workers' memory already."""


@dataclass
class CartridgeMetadata(KVConnectorMetadata):
    """What the scheduler tells the workers with a step."""

    writes: list[Write] = field(default_factory=list)
    drop: list[Front] = field(default_factory=list)
    """Fronts to let go, after the loaded ones were written and before others are loaded."""
    idle: bool = False
    """Whether the step computes nothing."""


class CartridgeConnector(KVConnectorBase_V1, SupportsHMA):
    """vLLM makes one for its scheduler and one for each worker; the side that is not its own stays unused."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = _SchedulerSide(
                attachment_key(Settings()),
                _bytes_per_token(vllm_config, kv_cache_config),
                Residency(int(extra.get("cache_bytes", DEFAULT_CACHE_BYTES))),
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
        return self._scheduler.hand_over(idle=scheduler_output.total_num_scheduled_tokens == 0)

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
        self._worker.begin(metadata)

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


class _SchedulerSide:
    """Which request has what in front, and what of it is missing."""

    def __init__(self, key: bytes, bytes_per_token: int, residency: Residency) -> None:
        self._key, self._bytes_per_token, self._residency = key, bytes_per_token, residency
        self._attached: dict[str, Attachment | None] = {}
        """Of each live request that came with a Cartridge; None for one that must not have it."""
        self._loading: dict[str, Front] = {}
        """Outlives an aborted request, whose blocks stay until its load has ended."""
        self._metadata = CartridgeMetadata()

    def admit(self, request: Any) -> None:
        signed = (request.kv_transfer_params or {}).get(PARAMETER)
        if signed is None:
            return
        try:
            attachment = Attachment.verified(signed, self._key)
            if request.num_prompt_tokens <= attachment.num_tokens:
                raise AttachmentError(
                    f"A prompt of {request.num_prompt_tokens} tokens with a Cartridge of {attachment.num_tokens}."
                )
            if request.skip_reading_prefix_cache:
                # vLLM would run the placeholders as text and keep that under the Cartridge's salt.
                raise AttachmentError("Log-probs of a prompt with a Cartridge do not exist.")
        except AttachmentError as error:
            log.warning("Request %s is refused: %s", request.request_id, error)
            self._attached[request.request_id] = None
            request.skip_reading_prefix_cache = False
            salt = secrets.token_hex(32)
        else:
            self._attached[request.request_id] = attachment
            salt = attachment.salt(self._key)
            if attachment.residency in ("pin", "unpin"):
                self._residency.pin(_front(attachment), attachment.residency == "pin")
        # Not the client's: placeholders are the same for all Cartridges, the salt alone tells their blocks apart.
        request.cache_salt = salt
        request.block_hashes.clear()
        request.update_block_hashes()

    def missing(self, request_id: str, num_computed_tokens: int) -> tuple[int | None, bool]:
        if request_id not in self._attached:
            return 0, False
        attachment = self._attached[request_id]
        if attachment is None:
            return 1, True
        count = attachment.num_tokens - num_computed_tokens
        if count <= 0:
            self._residency.touch(_front(attachment))
            return 0, False
        state = self._residency.state(_front(attachment), self._bytes(attachment))
        if state == "never":
            log.error("Request %s: its Cartridge is larger than cache_bytes.", request_id)
            self._attached[request_id] = None
            return 1, True
        return (None, False) if state == "full" else (count, state == "loadable")

    def order(self, request_id: str, block_ids: tuple[list[int], ...], num_tokens: int) -> None:
        attachment = self._attached[request_id]
        if attachment is None:
            self._metadata.writes.append(Write(request_id, "", (), 0, 0, block_ids, False))
            return
        front, total = _front(attachment), attachment.num_tokens
        loaded = self._residency.state(front, self._bytes(attachment)) == "resident"
        if loaded:
            self._residency.touch(front)
        else:
            self._metadata.drop += self._residency.begin(front, self._bytes(attachment))
            self._loading[request_id] = front
        self._metadata.writes.append(
            Write(request_id, attachment.tenant, front, total - num_tokens, total, block_ids, loaded)
        )

    def hand_over(self, idle: bool) -> CartridgeMetadata:
        metadata, self._metadata = self._metadata, CartridgeMetadata()
        metadata.idle = idle
        return metadata

    def settle(self, finished: set[str], failed: set[str]) -> None:
        for request_id in finished:
            front = self._loading.pop(request_id, None)
            if front is not None:
                self._residency.end(front, loaded=request_id not in failed)

    def forget(self, request_id: str) -> None:
        attachment = self._attached.pop(request_id, None)
        if attachment is not None and attachment.residency == "drop" and self._residency.drop(_front(attachment)):
            self._metadata.drop.append(_front(attachment))

    def _bytes(self, attachment: Attachment) -> int:
        return attachment.num_tokens * self._bytes_per_token


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

    def begin(self, metadata: CartridgeMetadata) -> None:
        self._idle = metadata.idle
        for write in metadata.writes:
            if write.loaded:
                self._write(write, self._cartridges.shard(write.front))
        for front in metadata.drop:
            self._cartridges.drop(front)
        for write in metadata.writes:
            if not write.front:
                self._refused.add(write.request_id)
            elif not write.loaded:
                self._waiting.append((write, self._cartridges.load(write.tenant, write.front)))

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


def _front(attachment: Attachment) -> Front:
    return tuple(cartridge.digest for cartridge in attachment.cartridges)


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
