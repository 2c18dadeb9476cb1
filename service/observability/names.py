"""Which metrics a PromQL expression names, and which there are to name."""

import re

from service.catalogue import Entry
from service.metrics import Metrics
from service.observability.rules import rules

SUFFIXES = {
    "counter": ("",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}

PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"}
"""Of every process with prometheus-client, on Linux."""

TRITON = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_pending_request_count",
}
"""Of Triton (docs/user_guide/metrics.md of its server)."""

TRITON_GPU = {
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
}
"""The same, where there is an NVIDIA GPU."""

_NAME = re.compile(r"\b(?:mtgr|nv|process|up)[a-z0-9_:]*\b")
_QUOTED = re.compile(r'"[^"]*"')


def named(expr: str) -> set[str]:
    """Every metric, exported or recorded, that an expression reads."""
    return set(_NAME.findall(_QUOTED.sub('""', expr)))


def exported(entries: list[Entry] | None = None) -> set[str]:
    """Every series name of the gateway's catalogue."""
    entries = Metrics().catalogue.entries if entries is None else entries
    return {entry.name + suffix for entry in entries for suffix in SUFFIXES[entry.type]}


def recorded() -> set[str]:
    """What our recording rules make."""
    every = (rule for group in rules()["groups"] for rule in group["rules"])
    return {rule["record"] for rule in every if "record" in rule}


def nameable() -> set[str]:
    """What a dashboard or a rule may name."""
    return exported() | recorded() | PROCESS | TRITON | TRITON_GPU
