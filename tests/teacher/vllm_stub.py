"""What vLLM's server says, without vLLM: a strict HTTP server whose "model" draws each token's logits from the tokens
before it. Run as `vllm_stub.py OPTIONS_JSON`; prints its port. Replies have the form of `vllm_reply.json`.
"""

import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np

OPTIONS: dict[str, Any] = {
    "port": 0,
    "model": "talkative",
    "root": "/models/somewhere",
    "parent": None,
    "window": 1024,
    "vocabulary": 400,
    "max_logprobs": 20,
    "logprobs_mode": "raw_logprobs",
    "key": None,
    "log": None,  # a file that gets a line for each turn written
    "pause_s": 0.0,  # before each turn
    "status": 200,  # of every completion
    "finish_reason": None,  # instead of the true one
    "names": "token_id:{}",
}
BUSY, LOCK = [0], Lock()
"""Requests under way."""
FIELDS = {
    "model", "prompt", "max_tokens", "temperature", "seed", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids", "return_token_ids", "logprobs",
    "return_tokens_as_token_ids",
}  # fmt: skip
"""Of a request; vLLM ignores others in silence, which hides mistakes."""


def logits_behind(token_ids: list[int]) -> np.ndarray:
    """The model."""
    seed = int.from_bytes(hashlib.sha256(json.dumps(token_ids).encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=OPTIONS["vocabulary"]) * 3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


def complete(body: dict[str, Any]) -> dict[str, Any]:
    luck = np.random.default_rng(body["seed"])
    written: list[int] = []
    steps = []
    reason = "length"
    heat = body["temperature"]
    while len(written) < body["max_tokens"]:
        logits = logits_behind(body["prompt"] + written)
        raw = log_softmax(logits)
        token = int(logits.argmax())
        if heat > 0:
            token = int(luck.choice(len(logits), p=np.exp(log_softmax(logits / heat))))
        written.append(token)
        modes = {"raw_logprobs": raw, "raw_logits": logits, "processed_logprobs": log_softmax(logits / (heat or 1.0))}
        said = modes[OPTIONS["logprobs_mode"]].astype(np.float32)
        best = np.argsort(-said, kind="stable")[: body.get("logprobs") or 0].tolist()
        steps.append({OPTIONS["names"].format(one): float(said[one]) for one in dict.fromkeys([token, *best])})
        if token in body["stop_token_ids"]:
            reason = "stop"
            break
    names = [OPTIONS["names"].format(token) for token in written]
    logprobs = {
        "text_offset": [0] * len(written),
        "token_logprobs": [step[name] for step, name in zip(steps, names, strict=True)],
        "tokens": names,
        "top_logprobs": steps,
    }
    choice = {
        "index": 0,
        "text": "",
        "logprobs": logprobs if body.get("logprobs") else None,
        "finish_reason": OPTIONS["finish_reason"] or reason,
        "stop_reason": written[-1] if reason == "stop" else None,
        "token_ids": written,
        "prompt_logprobs": None,
        "prompt_token_ids": body["prompt"],
        "routed_experts": None,
    }
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": {
            "prompt_tokens": len(body["prompt"]),
            "total_tokens": len(body["prompt"]) + len(written),
            "completion_tokens": len(written),
            "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": None, "multimodal_tokens": None},
            "completion_tokens_details": None,
        },
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def problem_of(body: dict[str, Any]) -> str | None:
    """What is wrong with a request, in vLLM's words where it has any."""
    if not set(body) <= FIELDS:
        return f"unknown fields {sorted(set(body) - FIELDS)}"
    if not all(isinstance(token, int) and 0 <= token < OPTIONS["vocabulary"] for token in body["prompt"]):
        return "the prompt is no list of tokens"
    if (asked := body.get("logprobs") or 0) > OPTIONS["max_logprobs"]:
        return f"Requested sample logprobs of {asked}, which is greater than max allowed: {OPTIONS['max_logprobs']}"
    if len(body["prompt"]) + body["max_tokens"] > OPTIONS["window"]:
        return f"This model's maximum context length is {OPTIONS['window']} tokens."
    return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: what is logged is `OPTIONS["log"]`."""

    def do_GET(self) -> None:
        card = {"id": OPTIONS["model"], "object": "model", "created": 1, "owned_by": "vllm", "root": OPTIONS["root"]}
        card |= {"parent": OPTIONS["parent"], "max_model_len": OPTIONS["window"], "permission": []}
        if not self.allowed():
            self.reply(401, {"error": "Unauthorized"})
        elif self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [card]})
        else:
            self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        with LOCK:
            BUSY[0] += 1
        try:
            self.complete(BUSY[0])
        finally:
            with LOCK:
                BUSY[0] -= 1

    def complete(self, busy: int) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(OPTIONS["pause_s"])
        if not self.allowed():
            self.reply(401, {"error": "Unauthorized"})
        elif self.path != "/v1/completions":
            self.reply(404, {"detail": "Not Found"})
        elif OPTIONS["status"] != 200:
            self.refuse(OPTIONS["status"], "out of order")
        elif body["model"] != OPTIONS["model"]:
            self.refuse(404, f"The model `{body['model']}` does not exist.")
        elif problem := problem_of(body):
            self.refuse(400, problem)
        else:
            self.reply(200, complete(body))
            if OPTIONS["log"]:
                with open(OPTIONS["log"], "a", encoding="utf-8") as log:  # noqa: PTH123
                    log.write(json.dumps([body["prompt"], body["seed"], body.get("logprobs"), busy]) + "\n")

    def allowed(self) -> bool:
        return OPTIONS["key"] is None or self.headers["authorization"] == f"Bearer {OPTIONS['key']}"

    def refuse(self, status: int, problem: str) -> None:
        self.reply(status, {"error": {"message": problem, "type": "BadRequestError", "param": None, "code": status}})

    def reply(self, status: int, content: dict[str, Any]) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


if __name__ == "__main__":
    OPTIONS |= json.loads(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", OPTIONS["port"]), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
