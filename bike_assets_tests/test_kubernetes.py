"""The manifests of a cluster, as kubectl renders them: that the parts fit each other.

Belongs here: names, settings, secrets, who reaches whom, and that the pods of runs are what the code location is. Does
not belong here: API schemas and hardening, which `make lint-deploy` holds.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import dagster as dg
import kubernetes
import pytest
import yaml
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job
from dagster_k8s.launcher import K8sRunLauncher

from bike_assets.settings import REPOSITORY, TELEMETRY_OFF, Settings
from bike_serving.settings import Settings as ServingSettings

KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
OTHERS = (
    "DAGSTER_POSTGRES_",
    "DAGSTER_LOGS_BUCKET",
    "DAGSTER_CURRENT_IMAGE",
    "MLFLOW_",
    "PGPASSWORD",
    "HOME",
)
"""Variables of Dagster, MLflow and PostgreSQL, or of no one in particular."""

Manifest = Mapping[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders the manifests, is not on PATH")
    done = subprocess.run(
        [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    return rendered(request.param)


def of_kind(manifests: tuple[Manifest, ...], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """The template of every Deployment's and Job's pods, and of a run's."""
    started = {**of_kind(manifests, "Deployment"), **of_kind(manifests, "Job")}
    found = {name: each["spec"]["template"] for name, each in started.items()}
    return {**found, "run": run_pod(manifests)}


def run_pod(manifests: tuple[Manifest, ...]) -> Manifest:
    """The pod that the launcher of the instance starts for a run."""
    instance = yaml.safe_load(of_kind(manifests, "ConfigMap")["dagster-instance"]["data"]["dagster.yaml"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
        launcher = K8sRunLauncher(**instance["run_launcher"]["config"])
    context = K8sContainerContext.create_for_run(dg.DagsterRun("demo"), launcher, include_run_tags=False)
    (code_location,) = of_kind(manifests, "Deployment")["code-location"]["spec"]["template"]["spec"][
        "containers"
    ]
    image = environment(code_location)["DAGSTER_CURRENT_IMAGE"]["value"]
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config(image, launcher),
        ["dagster", "api", "execute_run"],
        "dagster-run",
        user_defined_k8s_config=context.run_k8s_config,
    )
    plain: Manifest = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    assert of_kind(manifests, "Namespace").keys() == {context.namespace}
    template: Manifest = plain["spec"]["template"]
    return template


def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    found: Manifest = only
    return found


def environment(part: Manifest) -> dict[str, Manifest]:
    return {entry["name"]: entry for entry in part.get("env", [])}


def test_a_run_is_the_code_location_with_another_command(manifests: tuple[Manifest, ...]) -> None:
    location, run = pods(manifests)["code-location"], pods(manifests)["run"]
    ours, theirs = container(location), container(run)

    assert theirs["image"] == ours["image"]
    assert theirs["envFrom"] == ours["envFrom"]
    wanted = {name: each for name, each in environment(ours).items() if name != "DAGSTER_CURRENT_IMAGE"}
    own = {"DAGSTER_HOME", "DAGSTER_RUN_JOB_NAME"}
    assert {name: each for name, each in environment(theirs).items() if name not in own} == wanted
    assert by_name(theirs["volumeMounts"]) == by_name(ours["volumeMounts"])
    assert by_name(run["spec"]["volumes"]) == by_name(location["spec"]["volumes"])
    assert theirs["securityContext"] == ours["securityContext"]
    for same in ("securityContext", "serviceAccountName", "automountServiceAccountToken"):
        assert run["spec"][same] == location["spec"][same], same
    assert {"limits", "requests"} <= theirs["resources"].keys()


def by_name(parts: list[Manifest]) -> dict[str, Manifest]:
    return {part["name"]: part for part in parts}


def test_the_instance_is_that_of_compose_but_where_runs_and_logs_are() -> None:
    here = yaml.safe_load((KUBERNETES / "base" / "dagster.yaml").read_text(encoding="utf-8"))
    compose = yaml.safe_load((REPOSITORY / "deploy" / "dagster.yaml").read_text(encoding="utf-8"))
    of_the_place = {"run_launcher", "compute_logs"}

    assert here.keys() == compose.keys()
    assert {name for name in here if here[name] != compose[name]} == of_the_place


def test_every_setting_exists_and_no_library_calls_home(manifests: tuple[Manifest, ...]) -> None:
    known = {f"BIKE_{field.upper()}" for field in Settings.model_fields}
    known |= {f"BIKE_SERVING_{field.upper()}" for field in ServingSettings.model_fields}
    given: Mapping[str, str] = of_kind(manifests, "ConfigMap")["platform"]["data"]
    named = {name for pod in pods(manifests).values() for name in environment(container(pod))} | given.keys()
    ours = {name for name in named if name.startswith("BIKE_")}

    assert ours <= known
    assert {name: given.get(name) for name in TELEMETRY_OFF} == TELEMETRY_OFF
    strange = named - ours - TELEMETRY_OFF.keys() - {"CSQL_PROXY_INSTANCE_CONNECTION_NAME"}
    assert [name for name in strange if not name.startswith((*OTHERS, "DAGSTER_HOME"))] == []
    Settings(
        _env_file=None,  # type: ignore[call-arg]
        **{name.removeprefix("BIKE_").lower(): value for name, value in given.items() if name.startswith("BIKE_")},
    )  # fmt: skip


def secrets(manifests: tuple[Manifest, ...]) -> Iterator[tuple[str, str]]:
    """Every secret that a pod refers to, with a key of it."""
    for pod in pods(manifests).values():
        for entry in environment(container(pod)).values():
            if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"], reference["key"]
        for volume in pod["spec"].get("volumes", []):
            if secret := volume.get("secret"):
                for item in secret.get("items", []):
                    yield secret["secretName"], item["key"]


def test_secrets_are_referred_to_and_the_page_says_which_must_exist(manifests: tuple[Manifest, ...]) -> None:
    assert not of_kind(manifests, "Secret")
    page = (REPOSITORY / "docs" / "production.md").read_text(encoding="utf-8")
    rows = {
        name.strip("` "): keys
        for name, keys in (
            line.strip("| ").split(" | ", 1) for line in page.splitlines() if line.startswith("| `")
        )
    }
    for name, key in secrets(manifests):
        assert f"`{key}`" in rows.get(name, ""), f"docs/production.md: secret {name} lacks {key}"


def test_the_service_sees_no_private_key_and_nothing_of_the_platforms_volume(
    manifests: tuple[Manifest, ...],
) -> None:
    pod = pods(manifests)["serving"]
    keys = by_name(pod["spec"]["volumes"])["public-key"]["secret"]
    assert [item["key"] for item in keys["items"]] == ["bundle.pub"]
    assert "persistentVolumeClaim" not in str(pod["spec"]["volumes"])
    bucket = environment(container(pod))["BIKE_SERVING_BUNDLES_URL"]["valueFrom"]["configMapKeyRef"]
    assert of_kind(manifests, "ConfigMap")[bucket["name"]]["data"][bucket["key"]].startswith("gs://")


def test_only_who_starts_runs_may_ask_the_api_server(manifests: tuple[Manifest, ...]) -> None:
    may = {name for name, pod in pods(manifests).items() if pod["spec"]["automountServiceAccountToken"]}
    assert may == {"dagster-daemon", "dagster-webserver"}
    assert not any(
        each["automountServiceAccountToken"] for each in of_kind(manifests, "ServiceAccount").values()
    )


def test_replicas_are_what_the_autoscaler_and_the_budget_keep(manifests: tuple[Manifest, ...]) -> None:
    replicas = of_kind(manifests, "Deployment")["serving"]["spec"]["replicas"]
    assert of_kind(manifests, "HorizontalPodAutoscaler")["serving"]["spec"]["minReplicas"] == replicas == 3
    assert of_kind(manifests, "PodDisruptionBudget")["serving"]["spec"]["minAvailable"] < replicas
    limits = container(pods(manifests)["serving"])["resources"]["limits"]
    assert limits == {"cpu": "1", "memory": "2Gi"}


# --- who reaches whom -----


def matches(selector: Manifest, labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def reaches(manifests: tuple[Manifest, ...], source: str, target: str, port: int) -> bool:
    """Whether a pod may open a connection to another: the policies of both must allow it."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(manifests).items()}
    policies = [each["spec"] for each in of_kind(manifests, "NetworkPolicy").values()]

    def allows(direction: str, side: str, pod: str, peer: str) -> bool:
        for policy in policies:
            if direction not in policy["policyTypes"] or not matches(policy["podSelector"], labels[pod]):
                continue
            for rule in policy.get(direction.lower(), []):
                ports = {entry["port"] for entry in rule["ports"]}
                peers = rule.get(side)
                named = peers is None or any(
                    matches(entry["podSelector"], labels[peer]) for entry in peers if "podSelector" in entry
                )
                if port in ports and named:
                    return True
        return False

    return allows("Egress", "to", source, target) and allows("Ingress", "from", target, source)


@pytest.mark.parametrize(
    ("sources", "target", "port"),
    [
        ({"dagster-daemon", "dagster-webserver"}, "code-location", 4000),
        ({"serving"}, "dagster-webserver", 3000),
        ({"code-location", "run", "serving", "mlflow-users"}, "mlflow", 5000),
        ({"code-location", "run"}, "serving", 8000),
        ({"code-location", "run", "mlflow", "dagster-daemon", "dagster-webserver"}, "postgres", 5432),
    ],
)
def test_who_must_reach_a_service_does_and_nobody_else(
    manifests: tuple[Manifest, ...], sources: set[str], target: str, port: int
) -> None:
    service = of_kind(manifests, "Service")[target]["spec"]
    assert [each["port"] for each in service["ports"]] == [port]
    assert matches({"matchLabels": service["selector"]}, pods(manifests)[target]["metadata"]["labels"])

    assert {source for source in pods(manifests) if reaches(manifests, source, target, port)} == sources


def test_nothing_is_allowed_that_no_policy_names(manifests: tuple[Manifest, ...]) -> None:
    nobody = of_kind(manifests, "NetworkPolicy")["nobody"]["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
