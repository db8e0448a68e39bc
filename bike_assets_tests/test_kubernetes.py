"""The manifests of a cluster, as kubectl renders them: that the parts fit each other.

Belongs here: names, settings, secrets, who reaches whom, and that the pods of runs are what the code location is. Does
not belong here: API schemas and hardening, which `make lint-deploy` holds.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
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
    "PGHOST",
    "PGPASSWORD",
    "HOME",
)
"""Variables of Dagster, MLflow and PostgreSQL, or of no one in particular."""

SLOTS = ("blue", "green")

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


def test_the_instance_is_that_of_compose_but_where_runs_are_and_wait_and_logs_are() -> None:
    here = yaml.safe_load((KUBERNETES / "base" / "dagster.yaml").read_text(encoding="utf-8"))
    compose = yaml.safe_load((REPOSITORY / "deploy" / "dagster.yaml").read_text(encoding="utf-8"))
    of_the_place = {"run_launcher", "compute_logs"}
    # A run that waits for its place in the pool is a pod that keeps what it requested.
    del compose["concurrency"]["pools"]["op_granularity_run_buffer"]

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
    pod = pods(manifests)["serving-blue"]
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


@pytest.mark.parametrize("slot", SLOTS)
def test_replicas_are_what_the_autoscaler_and_the_budget_keep(
    manifests: tuple[Manifest, ...], slot: str
) -> None:
    name = f"serving-{slot}"
    deployment = of_kind(manifests, "Deployment")[name]["spec"]
    # Applying the manifests again must not undo what the autoscaler did.
    assert "replicas" not in deployment
    scaler = of_kind(manifests, "HorizontalPodAutoscaler")[name]["spec"]
    assert scaler["minReplicas"] == 3
    assert scaler["scaleTargetRef"]["name"] == name
    budget = of_kind(manifests, "PodDisruptionBudget")[name]["spec"]
    assert budget["minAvailable"] < 3
    assert budget["selector"]["matchLabels"] == deployment["selector"]["matchLabels"]
    limits = container(pods(manifests)[name])["resources"]["limits"]
    assert limits == {"cpu": "1", "memory": "2Gi"}


# --- two slots of the REST service -----


def test_the_slots_differ_in_name_and_image_only_and_one_of_them_serves(
    manifests: tuple[Manifest, ...],
) -> None:
    slots = of_kind(manifests, "ConfigMap")["slots"]["data"]
    blue, green = (
        yaml.safe_load(
            yaml.safe_dump(of_kind(manifests, "Deployment")[f"serving-{slot}"])
            .replace(slots[slot], "the image")
            .replace(slot, "the slot")
        )
        for slot in SLOTS
    )
    assert blue == green
    selector = of_kind(manifests, "Service")["serving"]["spec"]["selector"]
    chosen = [slot for slot in SLOTS if matches({"matchLabels": selector}, labels_of(manifests, slot))]
    assert chosen == [slots["slot"]]


def labels_of(manifests: tuple[Manifest, ...], slot: str) -> dict[str, str]:
    found: dict[str, str] = pods(manifests)[f"serving-{slot}"]["metadata"]["labels"]
    return found


class Cluster:
    """A copy of the manifests, and a `kubectl` that keeps what is applied and orders nobody."""

    def __init__(self, folder: Path) -> None:
        rendered("staging")  # skips where there is no kubectl
        self._folder, self._log = folder, folder / "log"
        shutil.copytree(KUBERNETES, folder / "kubernetes")
        fake = folder / "kubectl"
        script = REPOSITORY / "bike_assets_tests" / "fakes" / "kubectl.py"
        fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n', encoding="utf-8")
        fake.chmod(0o755)

    def blue_green(self, *arguments: str, never_ready: str = "") -> tuple[int, str, list[str]]:
        """Its exit code, what it said, and what it ordered."""
        done = subprocess.run(
            [str(self._folder / "kubernetes" / "blue-green"), "staging", *arguments],
            env={
                **os.environ,
                "PATH": f"{self._folder}:{os.environ['PATH']}",
                "REAL_KUBECTL": str(shutil.which("kubectl")),
                "FAKE_KUBECTL_STATE": str(self._folder),
                "NEVER_READY": never_ready,
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        ordered = self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return done.returncode, done.stdout + done.stderr, ordered

    def from_another_clone(self) -> None:
        """The next command comes from a clone that has not heard of the last ones."""
        release = Path("components", "release", "slots.env")
        shutil.copy(KUBERNETES / release, self._folder / "kubernetes" / release)


def test_a_release_takes_over_once_it_is_ready_and_gives_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    old, new = "ghcr.io/bike-assets/bike-serving:0.1.0", "ghcr.io/bike-assets/bike-serving@sha256:1"

    assert cluster.blue_green("apply")[2] == [f"apply blue blue={old} green={old}"]
    assert cluster.blue_green("end")[2] == ["scale serving-green 0"]

    code, said, ordered = cluster.blue_green("deploy", new)
    assert code == 0, said
    assert ordered == [
        f"apply blue blue={old} green={new}",
        "scale serving-green 3",
        "ready serving-green",
        f"apply green blue={old} green={new}",
    ]

    cluster.from_another_clone()
    assert cluster.blue_green("apply")[2] == [f"apply green blue={old} green={new}"]
    assert cluster.blue_green("switch")[2] == ["ready serving-blue", f"apply blue blue={old} green={new}"]


def test_a_release_that_does_not_become_ready_is_never_asked(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.blue_green("apply")

    code, said, ordered = cluster.blue_green("deploy", "bad:1", never_ready="serving-green")
    assert code == 1
    assert "serving-blue serves on" in said
    assert [each.split()[1] for each in ordered if each.startswith("apply")] == ["blue"]

    cluster.blue_green("end")
    code, said, ordered = cluster.blue_green("switch")
    assert (code, ordered) == (1, [])
    assert "serving-green does not run" in said


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
        ({"serving-blue", "serving-green"}, "dagster-webserver", 3000),
        ({"code-location", "run", "serving-blue", "serving-green", "mlflow-users"}, "mlflow", 5000),
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


def test_whichever_slot_serves_the_platform_reaches_it(manifests: tuple[Manifest, ...]) -> None:
    for slot in SLOTS:
        target = f"serving-{slot}"
        who = {source for source in pods(manifests) if reaches(manifests, source, target, 8000)}
        assert who == {"code-location", "run"}


def test_nothing_is_allowed_that_no_policy_names(manifests: tuple[Manifest, ...]) -> None:
    nobody = of_kind(manifests, "NetworkPolicy")["nobody"]["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
