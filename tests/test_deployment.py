"""The files that deploy the service agree with its settings and with each other."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clq_serve.auth import admin_scopes, public_scopes
from clq_serve.configuration import read_settings
from clq_serve.metrics import Metrics
from clq_serve.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "serve.Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
KUBERNETES = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "docs/examples/kubernetes.yaml").read_text())
}
POD: dict[str, Any] = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]


def settings_of(environment: dict[str, object]) -> Settings:
    return read_settings({name: str(value) for name, value in environment.items()}, {})


def image_environment() -> dict[str, object]:
    found = re.findall(r"^ENV .*?(CLQ_SERVE_\w+)=(\S+)", DOCKERFILE, re.MULTILINE)
    return dict(found)


def pod_settings() -> Settings:
    given = {entry["name"]: entry["value"] for entry in CONTAINER["env"]}
    return settings_of(image_environment() | given)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_services_are_confined_and_get_the_time_to_finish(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["ports"] == ["127.0.0.1:${CLQ_PORT:-8000}:8000"]  # and not the admin listener
    environment = service.get("environment", {})
    checked = {k: v for k, v in environment.items() if k != "CLQ_SERVE_KEYS"}
    settings = settings_of(image_environment() | checked)
    grace_s = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.drain_s + settings.request_timeout_s


def test_only_the_service_that_needs_nothing_starts_by_itself() -> None:
    started = [name for name, s in COMPOSE["services"].items() if "profiles" not in s]
    assert started == ["serve"]
    assert "environment" not in COMPOSE["services"]["serve"]


def test_production_has_models_and_keys() -> None:
    production = COMPOSE["services"]["production"]
    folder = production["environment"]["CLQ_SERVE_MODELS"]
    assert production["volumes"] == [f"./models:{folder}:ro"]
    (secret,) = production["secrets"]
    assert production["environment"]["CLQ_SERVE_KEYS"] == f"/run/secrets/{secret}"
    assert secret in COMPOSE["secrets"]


def test_the_image_probes_itself_with_the_cheap_probe() -> None:
    assert 'CMD ["python", "-m", "clq_serve.healthcheck"]' in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert "EXPOSE 8000\n" in DOCKERFILE
    assert settings_of(image_environment()).admin_host == "127.0.0.1"


def test_the_pod_has_settings_that_the_service_accepts() -> None:
    settings = pod_settings()
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": settings.port, "admin": settings.admin_port}
    assert settings.keys is not None
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert str(settings.keys.parent) == mounts["keys"]
    annotations = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.admin_port)
    assert admin_scopes(annotations["prometheus.io/path"]) is not None


def test_the_pod_is_probed_on_paths_that_are_open() -> None:
    for probe, path, port in (
        ("startupProbe", "/startupz", "http"),
        ("livenessProbe", "/healthz", "admin"),
        ("readinessProbe", "/readyz", "http"),
    ):
        assert CONTAINER[probe]["httpGet"] == {"path": path, "port": port}
        assert public_scopes(path) is None
        assert admin_scopes(path) is None


def test_a_pod_that_stops_has_left_the_service_before_it_stops_accepting() -> None:
    settings = pod_settings()
    probe = CONTAINER["readinessProbe"]
    noticed_s = probe["periodSeconds"] * (probe["failureThreshold"] + 1)
    assert settings.drain_s > noticed_s
    needed_s = settings.drain_s + settings.request_timeout_s
    assert POD["terminationGracePeriodSeconds"] > needed_s


def test_the_pod_is_confined() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert POD["enableServiceLinks"] is False  # its variables would begin with CLQ_SERVE_
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_parts_of_the_deployment_find_each_other() -> None:
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    assert KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert [p["targetPort"] for p in KUBERNETES["Service"]["spec"]["ports"]] == ["http"]
    volumes = {volume["name"] for volume in POD["volumes"]}
    assert volumes == {mount["name"] for mount in CONTAINER["volumeMounts"]}


def test_the_guide_names_settings_and_metrics_that_exist() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    shown = set(re.findall(r"`(clq_\w+?)`", text))
    metrics = Metrics()
    counted = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("clq_")
    }
    assert shown - {"clq_connections_cut_off_total"} == counted - {"clq_connections_cut_off_total"}
    rows = text.partition("## What happens at each limit")[2].partition("## Metrics")[0]
    named = {
        word
        for row in rows.splitlines()
        if row.startswith("| ") and row.count("|") == 4
        for word in re.findall(r"`([a-z_]+)`", row.split("|")[2])
    }
    assert named
    assert named <= set(Settings.model_fields)
