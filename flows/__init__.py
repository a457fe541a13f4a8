"""Prefect flows: decorators, retries, names and order. The work itself is in `cartridge_core.stages`.

No module here may use `from __future__ import annotations`: served flows then fail with "model is not fully defined".
"""
