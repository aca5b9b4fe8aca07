"""What is deployed: rendered by kubectl, valid for Kubernetes, and with no more rights than docs/deploy.md says."""

from __future__ import annotations

import json
import os
import re
import tomllib
from functools import cache
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml

from capture.arguments import parse_size
from podtap import COMMANDS, main
from tests.deployments import COMPONENTS, DEPLOY, ROOT, Object, containers, filled_in, overlay, rendered, workloads

CHOICES = {"base": [], "all": COMPONENTS, "all, backwards": COMPONENTS[::-1]} | {each: [each] for each in COMPONENTS}
"""What may be installed -> the components that it takes."""
VERSIONS = ("1.29", "1.33", "1.36")
CUSTOM = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
"""Of the Prometheus Operator: no schema of Kubernetes."""


@pytest.fixture(scope="module", params=CHOICES)
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return rendered(overlay(tmp_path_factory.mktemp("overlay"), CHOICES[request.param]))


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_overlay_of_each_component_is_there(component: str, tmp_path: Path) -> None:
    assert rendered(DEPLOY / "overlays" / component) == rendered(overlay(tmp_path, [component]))


@cache
def validate(text: str, version: str) -> None:
    """Most objects are the same, whatever is chosen."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(objects: list[Object], version: str) -> None:
    for each in objects:
        if each["kind"] not in CUSTOM:
            validate(json.dumps(each), version)


def test_all_is_in_the_namespace_or_in_none(objects: list[Object]) -> None:
    assert {each["metadata"].get("namespace", "podtap") for each in objects} == {"podtap"}


def test_only_the_agent_is_root_and_only_with_raw_sockets(objects: list[Object]) -> None:
    for name, spec, container in containers(objects):
        context = spec.get("securityContext", {}) | container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], name
        assert context["capabilities"]["drop"] == ["ALL"], name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        is_agent = name == "podtap-agent/agent"
        assert context["capabilities"].get("add", []) == (["NET_RAW"] if is_agent else []), name
        assert context["runAsUser"] == (0 if is_agent else 65532), name
        assert not context.get("privileged"), name


def test_the_agent_has_no_token(objects: list[Object]) -> None:
    spec = dict(workloads(objects))["podtap-agent"]
    assert spec["automountServiceAccountToken"] is False
    agent = next(each for each in spec["containers"] if each["name"] == "agent")
    projected = {volume["name"] for volume in spec["volumes"] if "projected" in volume or "secret" in volume}
    assert not projected & {mount["name"] for mount in agent["volumeMounts"]}


def test_roles_only_read(objects: list[Object]) -> None:
    rules = [
        (each["metadata"]["name"], rule) for each in objects if each["kind"].endswith("Role") for rule in each["rules"]
    ]
    for name, rule in rules:
        is_exec = rule["resources"] == ["pods/exec"] and name == "podtap-collect"
        assert set(rule["verbs"]) <= ({"create", "get"} if is_exec else {"get", "list", "watch"}), name
        assert not {"secrets", "configmaps", "*"} & set(rule["resources"]), name


def test_the_journal_may_read_what_it_records_and_nothing_else(objects: list[Object]) -> None:
    from capture.contract import KINDS

    role = next(e for e in objects if e["kind"] == "ClusterRole" and e["metadata"]["name"] == "podtap-journal")
    plurals = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert plurals == {re.sub("ys$", "ies", re.sub("ss$", "sse", kind.lower()) + "s") for kind in KINDS}


def test_every_selector_and_reference_finds_what_it_means(objects: list[Object]) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for each in objects:
        if "template" in each.get("spec", {}):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
            spec = each["spec"]["template"]["spec"]
            assert ("ServiceAccount", spec["serviceAccountName"]) in names
            assert spec.get("priorityClassName") is None or ("PriorityClass", spec["priorityClassName"]) in names
            for volume in spec["volumes"]:
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or ("PersistentVolumeClaim", claim) in names
        selector = {"NetworkPolicy": "podSelector"}.get(each["kind"], "selector")
        if each["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
            wanted = each["spec"][selector]["matchLabels"].items()
            templates = [e["spec"]["template"] for e in objects if "template" in e.get("spec", {})]
            assert any(wanted <= template["metadata"]["labels"].items() for template in templates)
        if each["kind"].endswith("RoleBinding"):
            assert (each["roleRef"]["kind"], each["roleRef"]["name"]) in names
            assert all((subject["kind"], subject["name"]) in names for subject in each["subjects"])


def images_of_this_version() -> set[str]:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return {f"podtap:{version}"}


def test_the_image_is_this_version_everywhere(objects: list[Object]) -> None:
    assert {container["image"] for *_, container in containers(objects)} == images_of_this_version()


def test_what_is_monitored_listens_where_it_is_asked_and_may_be_reached(objects: list[Object]) -> None:
    templates = [each["spec"]["template"] for each in objects if "template" in each.get("spec", {})]
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy" and each["spec"]["ingress"]]
    monitors = [each["spec"] for each in objects if each["kind"] == "PodMonitor"]
    assert bool(monitors) == bool(policies)
    for monitor in monitors:
        wanted = monitor["selector"]["matchLabels"].items()
        (template,) = [each for each in templates if wanted <= each["metadata"]["labels"].items()]
        named = {port["name"]: port for each in template["spec"]["containers"] for port in each.get("ports", [])}
        port = named[monitor["podMetricsEndpoints"][0]["port"]]
        if template["spec"].get("hostNetwork"):
            assert port["hostPort"] == port["containerPort"]  # policies don't reach there
            continue
        opened = [each for each in policies if each["podSelector"]["matchLabels"].items() <= wanted]
        assert [p["port"] for each in opened for rule in each["ingress"] for p in rule["ports"]] == [
            port["containerPort"]
        ]


def test_the_dashboard_is_found_by_its_label(objects: list[Object]) -> None:
    found = [each for each in objects if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    assert len(found) == sum(each["kind"] == "PrometheusRule" for each in objects)
    for each in found:
        (text,) = each["data"].values()
        panels = json.loads(text)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert each["metadata"]["name"] == "podtap-dashboard"


def test_the_journal_keeps_below_its_volume(objects: list[Object]) -> None:
    """Beyond an emptyDir's limit kubelet evicts the pod, and what it knew is gone."""
    spec = dict(workloads(objects))["podtap-journal"]
    quota = next(a.partition("=")[2] for a in spec["containers"][0]["args"] if a.startswith("--quota="))
    (volume,) = spec["volumes"]
    limit = volume.get("emptyDir", {}).get("sizeLimit")
    if limit is None:
        claim = next(each for each in objects if each["kind"] == "PersistentVolumeClaim")
        limit = claim["spec"]["resources"]["requests"]["storage"]
    assert parse_size(quota) <= parse_size(limit) - 512 * 2**20


def test_the_command_knows_every_argument(objects: list[Object]) -> None:
    """Variables are filled in as Kubernetes does, then click reads the arguments and stops before it does anything."""
    for name, _, container in containers(objects):
        variables = {each["name"]: each.get("value", "value") for each in container.get("env", [])}
        variables |= {"NAMESPACE": "default", "SELECTOR": "app=web", "HOST_IP": "192.0.2.1"}
        arguments = [filled_in(argument, variables) for argument in container["args"]]
        assert arguments[0] in COMMANDS, name
        with click.Context(main) as context:
            command = main.get_command(context, arguments[0])
            assert command is not None
            command.make_context(arguments[0], arguments[1:], parent=context)


def test_probes_ask_where_the_metrics_are(objects: list[Object]) -> None:
    for name, _, container in containers(objects):
        address = next((a.partition("=")[2] for a in container["args"] if a.startswith("--metrics=")), None)
        ports = {str(port["name"]): port["containerPort"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe not in container:
                assert address is None, name
                continue
            asked = container[probe]["httpGet"]
            assert address is not None
            host, _, port = address.rpartition(":")
            assert str(ports.get(str(asked["port"]), asked["port"])) == port, name
            assert asked.get("host") == (None if host in ("0.0.0.0", "$(HOST_IP)") else host), name


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [source for line in lines if re.match(r"COPY (?!--from)", line) for source in line.split()[1:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
    images = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(re.search(r":\d+\.\d+-slim-", image) for image in images)


def test_the_overlay_that_the_docs_show(tmp_path: Path) -> None:
    """With all that they say may be added to it."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    blocks = [yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    inline = [yaml.safe_load(each) for each in re.findall(r"`(labels: .*?)`", page)]
    shown: Object = {}
    for field, value in [pair for each in [*blocks, *inline] for pair in each.items()]:
        shown[field] = shown[field] + value if isinstance(value, list) and field in shown else value
    shown["components"] += [
        f"../capture/deploy/components/{e}" for e in COMPONENTS if e not in str(shown["components"])
    ]
    for field in ("resources", "components"):
        shown[field] = [os.path.relpath(ROOT / path.removeprefix("../"), tmp_path) for path in shown[field]]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(shown))
    objects = rendered(tmp_path)
    images = {container["image"] for *_, container in containers(objects)}
    assert images == {f"registry.example.com/{image}" for image in images_of_this_version()}
    found = {e["metadata"]["name"].rpartition("-")[0]: e["data"] for e in objects if e["kind"] == "ConfigMap"}
    assert found["podtap"]["cluster"] == "shop-eu-1"
    assert found["podtap-scope"] == {"NAMESPACE": "shop", "SELECTOR": "app=web"}
    (rule,) = [each for each in objects if each["kind"] == "PrometheusRule"]
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    agent = next(container for name, _, container in containers(objects) if name == "podtap-agent/agent")
    assert agent["args"][-3:] == ["--compress", "--", "not port 2379"]
    assert agent["args"].index("--scope-file=/run/podtap/scope.json") < agent["args"].index("--")


def test_the_docs_name_all_alerts_and_components(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    rules = next(e for e in rendered(overlay(tmp_path, ["monitoring"])) if e["kind"] == "PrometheusRule")
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Podtap\w+)`", page)) == alerts
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) >= set(COMPONENTS)
