"""scripts/deploy/kubernetes, against the schemas of Kubernetes, and against the image and the routes that it relies on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from locallab.server.runner import ENDING
from locallab.settings import ServerSettings
from tests.support.deploy_programs import DEPLOY
from tests.support.dockerfile import parse
from tests.support.http_server import Served

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.34", "1.37")
KUSTOMIZATION = "kustomization.yaml"


def load(path: Path) -> Any:
    [found] = yaml.safe_load_all(path.read_text())
    return found


def manifests(folder: Path) -> dict[str, Any]:
    """Return what `kubectl apply -k` applies, by kind: resources with their patches and images."""
    own = load(folder / KUSTOMIZATION)
    found: dict[str, Any] = {}
    for name in own["resources"]:
        path = (folder / name).resolve()
        found |= manifests(path) if path.is_dir() else {load(path)["kind"]: load(path)}
    for patch in own.get("patches", ()):
        change = load(folder / patch["path"])
        assert change["metadata"]["name"] == found[change["kind"]]["metadata"]["name"]
        found[change["kind"]] = merged(found[change["kind"]], change)
    for image in own.get("images", ()):
        [place] = [each for each in containers(found["Deployment"]) if each["image"].partition(":")[0] == image["name"]]
        place["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    return found


def containers(deployment: Any) -> list[Any]:
    found: list[Any] = deployment["spec"]["template"]["spec"]["containers"]
    return found


def merged(base: Any, change: Any) -> Any:
    """Apply a patch as a strategic merge does: containers are found by their names, other lists are replaced."""
    if not isinstance(base, dict):
        return change
    result = {**base}
    for name, value in change.items():
        if name == "containers":
            known = {each["name"]: each for each in base[name]}
            assert {each["name"] for each in value} <= set(known)
            result[name] = list({**known, **{each["name"]: merged(known[each["name"]], each) for each in value}}.values())
        else:
            result[name] = merged(base.get(name), value)
    return result


def files() -> Iterator[Path]:
    return (path for path in sorted(FOLDER.rglob("*.yaml")) if path.name not in (KUSTOMIZATION, "gpu.yaml"))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_manifest_is_as_kubernetes_has_it(version: str) -> None:
    found = [load(path) for path in files()] + list(manifests(FOLDER / "gpu").values())
    assert len(found) == 7
    for each in found:
        kubernetes_validate.validate(each, version, strict=True)
    wrong = {**found[0], "specc": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_each_file_is_used_or_is_an_example() -> None:
    named = {FOLDER / name for name in load(FOLDER / KUSTOMIZATION)["resources"]}
    assert named == {path for path in files() if "example" not in path.name}


@pytest.fixture(params=[FOLDER, FOLDER / "gpu"], ids=["cpu", "gpu"])
def deployed(request: pytest.FixtureRequest) -> dict[str, Any]:
    return manifests(request.param)


def test_what_belongs_together_has_the_same_names(deployed: dict[str, Any]) -> None:
    deployment, service, claim = (deployed[kind] for kind in ("Deployment", "Service", "PersistentVolumeClaim"))
    pod, secret = deployment["spec"]["template"], load(FOLDER / "secret.example.yaml")
    [container] = containers(deployment)
    assert deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"] == service["spec"]["selector"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["spec"]["volumes"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    assert service["spec"]["ports"][0]["targetPort"] in [each["name"] for each in container["ports"]]
    probes = [each for each in container if each.endswith("Probe")]
    assert {container[each]["httpGet"]["port"] for each in probes} == {"http"} and len(probes) == 3
    assert pod["spec"]["enableServiceLinks"] is False  # LOCALLAB_PORT would be the service's address


def test_the_pod_is_what_the_image_is_made_for(deployed: dict[str, Any]) -> None:
    image = parse((DEPLOY / "Dockerfile").read_text())[-1]
    [container] = containers(deployed["Deployment"])
    pod = deployed["Deployment"]["spec"]["template"]["spec"]
    own = pod["securityContext"]
    assert f"{own['runAsUser']}:{own['runAsGroup']}" == image.last("USER").text and own["runAsNonRoot"]
    assert own["fsGroup"] == own["runAsGroup"]
    assert image.last("VOLUME").text in [each["mountPath"] for each in container["volumeMounts"]]
    assert [str(each["containerPort"]) for each in container["ports"]] == [image.last("EXPOSE").text]
    grace = ServerSettings().grace + 2 * ENDING + int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > grace


def test_probes_ask_routes_that_need_no_key(deployed: dict[str, Any], served: Served) -> None:
    [container] = containers(deployed["Deployment"])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert served.http.get(container[probe]["httpGet"]["path"], headers={"host": "10.1.2.3:8000"}).status_code == 200


def test_the_gpu_is_asked_for() -> None:
    [container] = containers(manifests(FOLDER / "gpu")["Deployment"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert container["image"] == "registry.example.com/locallab:cuda"
    assert containers(manifests(FOLDER)["Deployment"])[0]["image"] == "registry.example.com/locallab:cpu"
