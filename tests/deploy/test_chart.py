"""The chart, rendered by Helm's own code: valid Kubernetes, true to the service, and refusing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from mtgr import COMMANDS, main
from service.observability.objectives import OBJECTIVES
from service.settings import PREFIX, ModelSettings, Settings
from tests.conftest import ROOT
from tests.deploy.chart_readme import CHART, described, readme
from tests.deploy.dockerfile import stages

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
EXAMPLES = {path.stem: yaml.safe_load(path.read_text()) for path in CHART.glob("examples/*.yaml")}
DEFAULTS = {"redis": {"url": "redis://redis:6379"}}
CASES = {"defaults": DEFAULTS, **EXAMPLES}
OPERATORS = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"}
"""Kinds of operators, whose schemas are not Kubernetes's own."""

Document = dict[str, Any]


def render(values: Document) -> list[Document]:
    """Every object of a release named `mtgr`."""
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="mtgr", namespace="ranking")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def pick(documents: list[Document], kind: str, name: str) -> Document:
    """The one of that kind and name."""
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pods(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Name and pod of every workload."""
    for document in documents:
        if document["kind"] in ("Deployment", "Job"):
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def serving(documents: list[Document], name: str) -> Document:
    """The one container of a deployment."""
    (found,) = pick(documents, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    container: Document = found
    return container


def containers(documents: list[Document]) -> Iterator[Document]:
    """Every container, of initialization too."""
    for _, pod in pods(documents):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("case", CASES)
def test_examples_render_valid_kubernetes(case: str) -> None:
    """Strictly by the schemas of Kubernetes; labels and selectors agree; names are unique."""
    documents = render(CASES[case])
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))
    for document in documents:
        if document["kind"] not in OPERATORS:
            kubernetes_validate.validate(document, "1.30", strict=True)
    deployments = [d["spec"] for d in documents if d["kind"] == "Deployment"]
    workloads = [spec["template"]["metadata"]["labels"] for spec in deployments]
    for spec, labels in zip(deployments, workloads, strict=True):
        assert spec["selector"]["matchLabels"].items() <= labels.items()
    for document in documents:
        if document["kind"] == "Service":
            selector = document["spec"]["selector"].items()
            assert any(selector <= labels.items() for labels in workloads), document["metadata"]


@pytest.mark.parametrize("case", CASES)
def test_examples_pass_helm_lint(case: str) -> None:
    """Nothing worse than an icon that is missing."""
    found = helm.lint(CHART, CASES[case], strict=True)
    assert not found["errors"]
    assert all("icon" in message["error"] for message in found["messages"])


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"gateway": {"replica": 3}}, "gateway"),
        ({"gateway": {"autoscaling": {"kind": "vpa"}}}, "gateway/autoscaling/kind"),
        ({"engine": {"kind": "onnx"}}, "engine/kind"),
        ({"canary": {"share": 100}}, "canary/share"),
        ({"redis": {"url": "http://redis"}}, "redis/url"),
        ({"monitoring": {"rules": {"objectives": {"latency": 99}}}},
         "monitoring/rules/objectives/latency"),
        ({"gatewy": {}}, "gatewy"),
    ],
)  # fmt: skip
def test_values_outside_the_schema_are_refused_with_their_path(values: Document, path: str) -> None:
    """By Helm itself, before anything is rendered."""
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError) as refusal:
        chart.render({**DEFAULTS, **values}, name="mtgr", namespace="ranking")
    assert path.replace("/", ".") in str(refusal.value).replace("/", ".")


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, "redis.url"),
        ({**DEFAULTS, "canary": {"enabled": True, "package": "b"}}, "route.enabled"),
        ({**DEFAULTS, "engine": {"delivery": "objectStore"}}, "engine.objectStore.url"),
    ],
)
def test_values_that_need_others_say_which(values: Document, needed: str) -> None:
    """What no schema of one value can say."""
    with pytest.raises(helm.HelmError, match=re.escape(needed)):
        render(values)


def test_schema_and_readme_know_every_value() -> None:
    """Each default is one of the schema's properties, and a row of the README."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path, _ in described():
        at = schema
        for part in path.split("."):
            if "properties" not in at:
                break  # a free object, such as resources
            assert part in at["properties"], path
            at = at["properties"][part]
    text = (CHART / "README.md").read_text()
    assert text == readme(), "helm/README.md: run 'make observability'"


def test_ports_probes_and_paths_are_those_of_the_service() -> None:
    """Of the application's routes, the images' ports and the scrape's path."""
    documents = render(EXAMPLES["fleet"])
    routes = paths()
    gateway = serving(documents, "mtgr-gateway")
    assert gateway["ports"] == [{"name": "http", "containerPort": 8000}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert gateway[probe]["httpGet"]["path"] in routes
        assert gateway[probe]["httpGet"]["port"] == "http"
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert gateway["args"] == stages()["gateway"].exec_form("CMD")
    assert stages()["gateway"].value("EXPOSE") == "8000"
    ports = {str(p["containerPort"]) for p in serving(documents, "mtgr-triton")["ports"]}
    assert set(stages()["triton"].value("EXPOSE").split()) <= ports
    monitor = pick(documents, "ServiceMonitor", "mtgr")
    assert all(endpoint["path"] in routes for endpoint in monitor["spec"]["endpoints"])
    services = [d for d in documents if d["kind"] == "Service"]
    named = {port["name"] for service in services for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= named
    (rule,) = pick(documents, "HTTPRoute", "mtgr")["spec"]["rules"]
    assert "/v1/rank".startswith(rule["matches"][0]["path"]["value"])


def paths() -> set[str]:
    """The routes as the source of the application names them."""
    source = (ROOT / "service" / "http" / "app.py").read_text()
    return set(re.findall(r'@app\.\w+\(\s*"([^"]+)"', source))


@pytest.mark.parametrize("case", CASES)
def test_environment_is_made_of_settings(case: str) -> None:
    """Every variable is a setting of the service, and their values are accepted by it."""
    documents = render(CASES[case])
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    data = pick(documents, "ConfigMap", "mtgr-gateway")["data"]
    assert set(data) <= known
    for document in documents:
        if document["kind"] == "Deployment" and document["metadata"]["name"] != "mtgr-triton":
            for container in document["spec"]["template"]["spec"]["containers"]:
                for variable in container.get("env", []):
                    assert variable["name"] in known
                    if variable["name"] == "MTGR_MODELS":
                        models = json.loads(variable["value"])
                        [ModelSettings.model_validate(model) for model in models.values()]
    settings = {name.removeprefix(PREFIX).lower(): value for name, value in data.items()}
    Settings(**settings, models={"home": ModelSettings(package=Path("p"))}, redis_url="redis://r")


@pytest.mark.parametrize("case", CASES)
def test_nothing_runs_as_root_or_writes_to_its_image(case: str) -> None:
    """Security contexts of every pod and container; a gateway's grace covers its drain."""
    documents = render(CASES[case])
    for name, pod in pods(documents):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        if name in ("mtgr-gateway", "mtgr-canary"):
            drain_s = Settings.model_fields["drain_s"].default
            assert pod["terminationGracePeriodSeconds"] > drain_s + 5
            assert len(pod["topologySpreadConstraints"]) == 2
    for container in containers(documents):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted


def test_a_canary_gets_its_share() -> None:
    """By weights that add up to a hundred, to gateways with the other package."""
    documents = render(EXAMPLES["fleet"])
    (rule,) = pick(documents, "HTTPRoute", "mtgr")["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert weights == {"mtgr-gateway": 95, "mtgr-canary": 5}

    def package(name: str) -> str:
        env = serving(documents, name)["env"]
        (models,) = [v["value"] for v in env if v["name"] == "MTGR_MODELS"]
        return str(json.loads(models)["home"]["package"])

    assert package("mtgr-gateway").endswith("/home-2026-11")
    assert package("mtgr-canary").endswith("/home-2026-12")


def test_rules_are_those_that_are_tested_but_for_the_objectives() -> None:
    """The chart's objectives are the code's by default; another one reaches its rule alone."""
    shipped = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())["groups"]
    rules = {"monitoring": {"rules": {"enabled": True, "runbooks": "docs/runbooks/"}}}
    assert pick(render(DEFAULTS | rules), "PrometheusRule", "mtgr")["spec"]["groups"] == shipped
    defaults = VALUES["monitoring"]["rules"]["objectives"]
    assert defaults == {objective.name: objective.target for objective in OBJECTIVES}

    changed = pick(render(EXAMPLES["fleet"]), "PrometheusRule", "mtgr")["spec"]["groups"]
    values = {rule["labels"]["slo"]: rule["expr"] for rule in changed[0]["rules"]}
    assert values["latency"] == "vector(0.999)"
    assert values["availability"] == "vector(0.999)"
    alert = next(rule for rule in changed[-1]["rules"] if rule.get("alert") == "MtgrBug")
    url = alert["annotations"]["runbook_url"]
    assert url == VALUES["monitoring"]["rules"]["runbooks"] + "MtgrBug.md"
    kept = [rule.get("expr") for group in changed[1:] for rule in group["rules"]]
    assert kept == [rule.get("expr") for group in shipped[1:] for rule in group["rules"]]


def test_scalers_follow_queue_time() -> None:
    """KEDA by PromQL over metrics that exist; HPA by the same metric; no fixed replicas then."""
    documents = render(EXAMPLES["fleet"])
    for name, query in (("gateway", "mtgr_wait_seconds"), ("triton", "queue_duration_us")):
        scaler = pick(documents, "ScaledObject", f"mtgr-{name}")["spec"]
        assert query in scaler["triggers"][0]["metadata"]["query"]
        assert scaler["scaleTargetRef"]["name"] == f"mtgr-{name}"
        assert "replicas" not in pick(documents, "Deployment", f"mtgr-{name}")["spec"]
    hpa = render(DEFAULTS | {"gateway": {"autoscaling": {"enabled": True, "kind": "hpa"}}})
    metrics = pick(hpa, "HorizontalPodAutoscaler", "mtgr-gateway")["spec"]["metrics"]
    assert metrics[1]["pods"]["metric"]["name"] == "mtgr_wait_seconds"
    assert metrics[1]["pods"]["target"]["averageValue"] == "5m"  # milli: 0.005 s


def test_who_may_talk_to_whom() -> None:
    """Triton hears gateways and Prometheus only; the callers' namespaces are those listed."""
    documents = render(EXAMPLES["fleet"])
    triton = pick(documents, "NetworkPolicy", "mtgr-triton")["spec"]
    ports = [[one["port"] for one in entry["ports"]] for entry in triton["ingress"]]
    assert ports == [["http", "grpc"], ["metrics"]]
    gateway = pick(documents, "NetworkPolicy", "mtgr-gateway")["spec"]["ingress"][0]["from"]
    spaces = [s["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for s in gateway]
    assert spaces == ["recall", "gateways", "monitoring"]
    assert not [d for d in render(EXAMPLES["laptop"]) if d["kind"] == "NetworkPolicy"]


def test_commands_of_the_engine_job_exist() -> None:
    """Each `mtgr ...` of its script is a command with these flags."""
    for case in CASES.values():
        for container in containers(render(case)):
            script = " ".join(container.get("args", []))
            for line in re.findall(r"\bmtgr (build|repository) ([^\n]*)", script):
                command, arguments = line
                assert command in COMMANDS
                found = main.get_command(click.Context(main), command)
                assert found is not None
                flags = set(re.findall(r"--[a-z-]+", arguments))
                assert flags <= {flag for parameter in found.params for flag in parameter.opts}


def test_engine_job_fills_the_volume(tmp_path: Path) -> None:
    """Its script, run as it is rendered: the demo's package and Triton's model; again, nothing."""
    job = next(d for d in render(DEFAULTS) if d["kind"] == "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = container["args"][0].replace("/engines", str(tmp_path))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    (tmp_path / "bin").mkdir()
    mtgr = tmp_path / "bin" / "mtgr"
    mtgr.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mtgr "$@"\n')
    mtgr.chmod(0o755)
    environment["PATH"] = f"{mtgr.parent}:{path}"
    for _ in range(2):
        done = subprocess.run(
            [*container["command"], script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "packages" / "demo" / "config.json").is_file()
    (model,) = (tmp_path / "models").iterdir()
    assert (model / "config.pbtxt").is_file()
