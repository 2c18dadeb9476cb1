"""Which engine serves, how hard does it work, and did it come there safely?"""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from service.observability.panels import (
    BYTES,
    COUNT,
    RATE,
    RATIO,
    SCENE,
    SECONDS,
    SHARE,
    W,
    board,
    facts,
    lines,
    quantiles,
    row,
)


def engine() -> Dashboard:
    """Engine, Triton and GPU."""
    backend = f'{SCENE}, stage="backend"'
    succeeded = f"sum by (model) (rate(nv_inference_request_success[{W}]))"
    return (
        board("mtgr-engine", "MTGR / engine and GPU", __doc__ or "")
        .with_row(row("What serves"))
        .with_panel(facts("engines", "Model, version and kind of engine, by scene.",
                          "count by (scene, model, version, engine) (mtgr_model_info)"))
        .with_panel(facts("gateways", "Build and Python, and how many instances run them.",
                          "count by (version, python) (mtgr_build_info)"))
        .with_panel(lines("switches", "In an hour, by outcome; a refused engine never served.",
                          COUNT, ("sum by (model, outcome) (increase(mtgr_switches_total[1h]))",
                                  "{{model}} {{outcome}}")))
        .with_panel(lines("switch under way", "1 from loading to the flip.", COUNT,
                          ("max by (model, instance) (mtgr_switching)", "{{model}} {{instance}}")))
        .with_panel(lines("shadow difference", "Largest difference of a probability between the "
                          "live engine and its shadow, an hour.", RATIO,
                          ("histogram_quantile(0.5, sum by (le, model) (increase("
                           "mtgr_shadow_difference_bucket[1h])))", "{{model}} p50"),
                          ("histogram_quantile(0.99, sum by (le, model) (increase("
                           "mtgr_shadow_difference_bucket[1h])))", "{{model}} p99")))
        .with_row(row("The engine, as the gateway sees it"))
        .with_panel(lines("time", "Of the stage `backend`: queue, copies, engine.", SECONDS,
                          *quantiles("mtgr_stage_seconds", backend), span=12))
        .with_panel(lines("payload", "Bytes a second that cross to the engine.", BYTES,
                          (f"sum(rate(mtgr_payload_bytes_sum{{{SCENE}}}[{W}]))", "payload"),
                          span=12))
        .with_row(row("Triton, if it serves"))
        .with_panel(lines("requests", "By outcome.", RATE, (succeeded, "{{model}}"),
                          (f"sum by (model, reason) (rate(nv_inference_request_failure[{W}]))",
                           "{{model}} failed: {{reason}}")))
        .with_panel(lines("mean time", "Waiting for a batch, and computing.", SECONDS,
                          (f"sum by (model) (rate(nv_inference_queue_duration_us[{W}]))"
                           f" / 1e6 / {succeeded}", "{{model}} queue"),
                          (f"sum by (model) (rate(nv_inference_compute_infer_duration_us[{W}]))"
                           f" / 1e6 / {succeeded}", "{{model}} compute")))
        .with_panel(lines("requests a batch", "How well requests are batched.", RATIO,
                          (f"sum by (model) (rate(nv_inference_count[{W}]))"
                           f" / sum by (model) (rate(nv_inference_exec_count[{W}]))",
                           "{{model}}")))
        .with_row(row("GPU: utilization, saturation, errors"))
        .with_panel(lines("utilization", "Share of the time in which a kernel ran.", SHARE,
                          ("nv_gpu_utilization", "{{gpu_uuid}}")))
        .with_panel(lines("memory", "Of the GPU.", BYTES,
                          ("nv_gpu_memory_used_bytes", "{{gpu_uuid}} used"),
                          ("nv_gpu_memory_total_bytes", "{{gpu_uuid}} there")))
        .with_panel(lines("power", "Watts, and the limit.", RATIO,
                          ("nv_gpu_power_usage", "{{gpu_uuid}}"),
                          ("nv_gpu_power_limit", "{{gpu_uuid}} limit")))
        .with_panel(lines("queue", "Requests waiting in Triton for a batch.", COUNT,
                          ("sum by (model) (nv_inference_pending_request_count)", "{{model}}")))
    )  # fmt: skip
