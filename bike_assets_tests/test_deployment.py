"""What deploys and drives the project: Makefile, CI, workflows, compose, images, Dagster's instance files.

Belongs here: what can be read from the files or by asking make. Does not belong here: starting the services.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bike_assets.settings import TELEMETRY_OFF

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker-compose.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = (ROOT / "deploy" / "platform.Dockerfile", ROOT / "serving" / "Dockerfile")

SLOTS = {"serving-blue", "serving-green"}
CORE = {"dagster-webserver", "dagster-daemon", "code-location", "postgres", "mlflow", "serving-blue", "proxy"}
SERVICES = CORE | {"serving-green", "prometheus", "cloud-sql"}
ONE_SHOT = {"bundle-keys", "mlflow-users"}
TARGETS = {
    *("help", "demo", "test", "test-all", "check", "lint-deploy", "dbt-slim", "audit"),
    *("up", "compose-up", "bench", "clean"),
}
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?P<operator>:?[-?+])?(?P<rest>[^}]*)\}")


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = _yaml(COMPOSE)["services"]
    return found


def _mounts(service: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Volume or file → (path inside, read-only)."""
    parts = [entry.split(":") for entry in service.get("volumes", [])]
    return {part[0]: (part[1], part[2:] == ["ro"]) for part in parts}


def _clean_environment(path: str | None = None) -> dict[str, str]:
    """This process's environment as a new terminal has it: make and uv leave their own settings in it."""
    left = ("MAKE", "MFLAGS", "UV_", "VIRTUAL_ENV", "ARGS", "HOME_DIR", "WORKERS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left)}
    return kept if path is None else {**kept, "PATH": path}


def _make(*arguments: str, folder: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    assert make is not None
    return subprocess.run(
        [make, *arguments],
        cwd=folder,
        env=_clean_environment(path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- schemas -----


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.compose-spec", [COMPOSE]),
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.dependabot", [ROOT / ".github" / "dependabot.yml"]),
    ],
)
def test_file_keeps_its_schema(schema: str, files: list[Path]) -> None:
    assert files
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


# --- compose -----


def test_services_are_there_with_health_restart_and_limits(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == SERVICES | ONE_SHOT
    for name in SERVICES:
        service = services[name]
        check = service["healthcheck"]
        assert check["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert {"interval", "timeout", "retries", "start_period"} <= set(check), name
        assert service["restart"] == "unless-stopped", name
        assert {"mem_limit", "cpus", "pids_limit"} <= set(service), name


def test_what_a_service_waits_for_can_happen(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        waits = service.get("depends_on", {})
        if isinstance(waits, dict):
            for other, how in waits.items():
                expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
                assert how["condition"] == expected, f"{name} → {other}"
        else:  # the proxy and Prometheus start before there is a champion, and are healthy without one
            assert waits == ["serving-blue"]
    for name in SERVICES - {"postgres", "cloud-sql"}:
        assert services[name]["depends_on"], name


def test_profiles_are_the_platform_and_what_may_stand_beside_it(services: dict[str, dict[str, Any]]) -> None:
    found: dict[str, set[str]] = {}
    for name, service in services.items():
        (profile,) = service["profiles"]
        found.setdefault(profile, set()).add(name)
    assert found == {
        "core": CORE | ONE_SHOT,
        "monitoring": {"prometheus"},
        "cloud-sql": {"cloud-sql"},
        "green": {"serving-green"},
    }


def test_the_slots_of_the_service_differ_in_their_image_only(services: dict[str, dict[str, Any]]) -> None:
    blue, green = (dict(services[name]) for name in sorted(SLOTS))
    for slot, service in (("BLUE", blue), ("GREEN", green)):
        assert service.pop("image") == f"bike-serving:${{SERVING_{slot}:-{_project()['project']['version']}}}"
        del service["profiles"]
    assert blue == green
    assert blue["scale"] == 2


def test_the_proxy_looks_for_the_file_that_blue_green_makes(services: dict[str, dict[str, Any]]) -> None:
    proxy = (ROOT / "deploy" / "proxy" / "Caddyfile").read_text(encoding="utf-8")
    (folder,), (name,) = re.findall(r"root (\S+)", proxy), re.findall(r"try_files (\S+)", proxy)
    script = (ROOT / "deploy" / "blue-green").read_text(encoding="utf-8")
    for command in ("[ -e {} ]", "touch {} ", "rm -f {} "):
        assert command.format(folder + name) in script
    # It outlives the container.
    assert f"proxy-config:{folder}" in services["proxy"]["volumes"]


def test_health_checks_ask_the_port_that_the_service_opens(services: dict[str, dict[str, Any]]) -> None:
    ports = {"dagster-webserver": "3000", "code-location": "4000", "mlflow": "5000"}
    for name, port in ports.items():
        assert port in services[name]["command"], name
        assert port in " ".join(services[name]["healthcheck"]["test"]), name
    serving = services["serving-blue"]
    assert f":{serving['environment']['BIKE_SERVING_PORT']}" in serving["healthcheck"]["test"][-1]
    proxy = (ROOT / "deploy" / "proxy" / "Caddyfile").read_text(encoding="utf-8")
    for slot in SLOTS:
        assert f"dynamic a {slot} {serving['environment']['BIKE_SERVING_PORT']} " in proxy
    published = {
        name: service["ports"][0].split(":")[-1] for name, service in services.items() if "ports" in service
    }
    assert published == {"dagster-webserver": "3000", "mlflow": "5000", "proxy": "8443", "prometheus": "9090"}


def test_no_secret_has_a_default() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    used = list(VARIABLE.finditer(text))
    secrets = [found for found in used if re.search(r"PASSWORD|SECRET|TOKEN", found["name"])]
    assert {found["name"] for found in secrets} == {
        *("POSTGRES_PASSWORD", "DAGSTER_POSTGRES_PASSWORD", "MLFLOW_POSTGRES_PASSWORD"),
        *(
            "MLFLOW_ADMIN_PASSWORD",
            "MLFLOW_PLATFORM_PASSWORD",
            "MLFLOW_SERVING_PASSWORD",
            "MLFLOW_SECRET_KEY",
        ),
    }
    for found in secrets:
        assert found["operator"] == ":?", f"{found[0]} must be required"
        assert found["rest"], f"{found[0]} must say what to do"
    written_out = re.findall(r"^\s+\w*(?:PASSWORD|SECRET|TOKEN)\w*:\s*(?!\$\{)\S.*$", text, re.MULTILINE)
    assert not written_out


def test_example_environment_and_compose_name_the_same_variables() -> None:
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    used = {found["name"]: found for found in VARIABLE.finditer(COMPOSE.read_text(encoding="utf-8"))}
    assert example.pop("COMPOSE_PROFILES") == "core"
    assert set(example) == set(used)
    for name, value in example.items():
        if used[name]["operator"] == ":?":
            assert value == "", f"{name} must be empty in .env.example"
        else:
            assert value == used[name]["rest"], f"{name}: .env.example and compose have different defaults"


def test_one_service_alone_mounts_the_warehouse(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "home" in _mounts(service)} == {"code-location"}
    writers = {n for n, s in services.items() if "bundles" in _mounts(s) and not _mounts(s)["bundles"][1]}
    assert writers == {"code-location"}
    assert services["code-location"]["environment"]["BIKE_ENV"] == "compose"
    assert (
        _mounts(services["code-location"])["home"][0] == services["code-location"]["environment"]["BIKE_HOME"]
    )


def test_service_sees_bundles_and_public_key_read_only_and_no_private_key(
    services: dict[str, dict[str, Any]],
) -> None:
    mounts = _mounts(services["serving-blue"])
    environment = services["serving-blue"]["environment"]
    assert mounts["bundles"] == (environment["BIKE_SERVING_BUNDLES_DIR"], True)
    assert mounts["public-key"] == (str(Path(environment["BIKE_SERVING_PUBLIC_KEY"]).parent), True)
    assert {name for name, service in services.items() if "keys" in _mounts(service)} == {
        "bundle-keys",
        "code-location",
    }


def test_volumes_are_declared_and_used(services: dict[str, dict[str, Any]]) -> None:
    used = {name for service in services.values() for name in _mounts(service) if not name.startswith(".")}
    assert used == set(_yaml(COMPOSE)["volumes"])
    for service in services.values():
        for name in _mounts(service):
            assert not name.startswith(".") or (ROOT / name).exists(), name


def test_telemetry_is_off_wherever_a_library_could_report(services: dict[str, dict[str, Any]]) -> None:
    for name in ("mlflow", "code-location", "dagster-webserver", "dagster-daemon"):
        environment = services[name]["environment"]
        assert {key: environment.get(key) for key in TELEMETRY_OFF} == TELEMETRY_OFF, name
    image = DOCKERFILES[0].read_text(encoding="utf-8").split("\nFROM ")[-1]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for key, value in TELEMETRY_OFF.items():
        assert f"{key}={value}" in image
        assert f"export {key} := {value}\n" in makefile


def test_mlflow_asks_who_one_is_and_each_who_asks_it_is_a_user_of_its_own(
    services: dict[str, dict[str, Any]],
) -> None:
    mlflow = services["mlflow"]
    assert mlflow["command"][mlflow["command"].index("--app-name") + 1] == "basic-auth"
    makes = services["mlflow-users"]["environment"]
    for service, name, user, password in (
        ("code-location", "platform", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        ("serving-blue", "serving", "BIKE_SERVING_MLFLOW_USERNAME", "BIKE_SERVING_MLFLOW_PASSWORD"),
    ):
        environment = services[service]["environment"]
        assert environment[user] == name
        assert environment[password] == makes[f"MLFLOW_{name.upper()}_PASSWORD"]


def test_a_container_of_ours_writes_to_its_volumes_only(services: dict[str, dict[str, Any]]) -> None:
    for name in services:
        if name != "postgres":
            assert services[name]["read_only"] is True, name


def test_mlflow_refuses_foreign_hosts_and_runs_no_jobs(services: dict[str, dict[str, Any]]) -> None:
    mlflow = services["mlflow"]
    hosts = mlflow["command"][mlflow["command"].index("--allowed-hosts") + 1].split(",")
    assert "mlflow:5000" in hosts
    assert not [host for host in hosts if "*" in host]
    assert mlflow["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert mlflow["environment"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    for user, variable in (
        ("code-location", "BIKE_MLFLOW_TRACKING_URI"),
        ("serving-blue", "BIKE_SERVING_MLFLOW_URL"),
    ):
        assert services[user]["environment"][variable].removeprefix("http://") in hosts


# --- images -----


def test_every_image_is_pinned(services: dict[str, dict[str, Any]]) -> None:
    version = _project()["project"]["version"]
    for name, service in services.items():
        if name in SLOTS:
            continue  # test_the_slots_of_the_service_differ_in_their_image_only
        tag = service["image"].partition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: {service['image']}"
        if "build" in service:
            assert tag == version, f"{name}: the image of our own code carries the project's version"
    for dockerfile in DOCKERFILES:
        text = dockerfile.read_text(encoding="utf-8")
        stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
        for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
            assert base in stages or re.match(r".+:\d+\.\d+", base), f"{dockerfile.name}: {base}"


def test_images_of_others_are_pinned_to_what_a_registry_says_their_names_mean(tmp_path: Path) -> None:
    named = ("docker-compose.yml", "deploy/kubernetes/components/gke/cloud-sql.yaml")
    files = [*named, *(str(path.relative_to(ROOT)) for path in DOCKERFILES)]
    for file in (*files, "deploy/pin-digests"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    tools = tmp_path / "tools"
    tools.mkdir()
    registry = tools / "docker"

    def pin(says: str, *only: str) -> subprocess.CompletedProcess[str]:
        registry.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "buildx imagetools inspect" ] && {says}\n')
        registry.chmod(0o755)
        return subprocess.run(
            [str(tmp_path / "deploy" / "pin-digests"), *only],
            env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def images() -> set[str]:
        text = "\n".join((tmp_path / file).read_text(encoding="utf-8") for file in files)
        return set(re.findall(r"^(?:FROM|\s*image:) +(\S+:\S+)", text, re.MULTILINE))

    before = images()
    ours = {image for image in before if image.startswith("bike-")}
    assert len(before - ours) == 5

    for no_answer in ("exit 1", "echo none"):
        assert pin(no_answer, *files).returncode != 0
    assert images() == before

    for answer in ("a", "b"):  # a second time, when the names mean something else
        assert pin(f"echo sha256:{answer * 64}", *files).returncode == 0
        assert images() == ours | {f"{image}@sha256:{answer * 64}" for image in before - ours}

    # Without a file it takes those of git that name an image.
    for arguments in (("init", "--quiet"), ("add", "--all")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    assert pin(f"echo sha256:{'c' * 64}").returncode == 0
    assert images() == ours | {f"{image}@sha256:{'c' * 64}" for image in before - ours}


def test_workflows_pin_what_they_build_on_and_what_they_deploy() -> None:
    def runs(workflow: str, job: str) -> list[str]:
        return [
            step.get("run", "")
            for step in _yaml(ROOT / ".github" / "workflows" / workflow)["jobs"][job]["steps"]
        ]

    building = runs("release.yml", "image")
    pinned = building.index('deploy/pin-digests "$DOCKERFILE"')
    assert pinned < min(number for number, run in enumerate(building) if "buildx build" in run)
    apply = next(run for run in runs("deploy.yml", "deploy") if "blue-green" in run and "apply" in run)
    (file,) = re.findall(r"^deploy/pin-digests (\S+)$", apply, re.MULTILINE)
    assert "image:" in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_image_is_locked_unprivileged_and_builds_from_the_context(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    last_stage = text.split("\nFROM ")[-1]
    users = re.findall(r"^USER (\S+)", last_stage, re.MULTILINE)
    assert users
    assert users[-1] not in {"root", "0", "0:0"}
    assert not text.startswith("# syntax="), "needs a registry where a plain builder needs none"
    for sync in re.findall(r"uv sync[^&\n]*", text):
        assert "--locked" in sync or "--frozen" in sync, sync
        assert "--no-dev" in sync, sync
    allowed = [
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    for arguments in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        *sources, _ = [word for word in arguments.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), f"{dockerfile.name} copies {source}, which is not there"
            assert any(source == path or source.startswith(path + "/") for path in allowed), (
                f"{dockerfile.name} copies {source}, which .dockerignore hides"
            )


def test_compose_builds_the_images_that_the_workflow_builds(services: dict[str, dict[str, Any]]) -> None:
    built = {service["build"]["dockerfile"] for service in services.values() if "build" in service}
    assert built == {str(path.relative_to(ROOT)) for path in DOCKERFILES}
    matrix = _yaml(ROOT / ".github" / "workflows" / "image.yml")["jobs"]["image"]["strategy"]["matrix"][
        "include"
    ]
    assert {entry["dockerfile"] for entry in matrix} == built


def test_make_and_the_platform_image_install_the_same_uv() -> None:
    wanted = re.search(
        r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert wanted
    assert re.findall(r"\buv==([\d.]+)", DOCKERFILES[0].read_text(encoding="utf-8")) == [wanted[1]]


def test_named_volumes_start_as_the_property_of_the_user_that_writes_them(
    services: dict[str, dict[str, Any]],
) -> None:
    """Docker gives a new volume the owner of the folder that the image has at its place."""
    for name, service in services.items():
        if "build" not in service:
            continue
        text = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8").replace("\\\n", " ")
        (made,) = re.findall(r"install -d -o bike -g bike ([^&\n]+)", text)
        assert "--uid 10001" in text
        assert service["user"] == "10001:10001", name
        for volume, (place, read_only) in _mounts(service).items():
            assert read_only or place in made.split(), f"{name}: {volume} at {place}"


# --- Dagster -----


def test_code_location_has_one_name_everywhere(services: dict[str, dict[str, Any]]) -> None:
    name = _project()["tool"]["dg"]["project"]["code_location_name"]
    (local,) = _yaml(ROOT / "workspace.yaml")["load_from"]
    (compose,) = _yaml(ROOT / "deploy" / "workspace.yaml")["load_from"]
    command = services["code-location"]["command"]
    assert local["python_module"]["location_name"] == name
    assert compose["grpc_server"]["location_name"] == name
    assert command[command.index("--location-name") + 1] == name
    assert command[command.index("--module-name") + 1] == local["python_module"]["module_name"]


def test_workspace_of_compose_points_at_the_code_location(services: dict[str, dict[str, Any]]) -> None:
    (entry,) = _yaml(ROOT / "deploy" / "workspace.yaml")["load_from"]
    server = entry["grpc_server"]
    command = services[server["host"]]["command"]
    assert command[command.index("--port") + 1] == str(server["port"])


@pytest.mark.parametrize(("name", "runs"), [("dagster.yaml", 4), ("dagster.local.yaml", 2)])
def test_instance_is_accepted_by_dagster_and_has_one_warehouse_writer(
    name: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster._core.instance.ref import InstanceRef

    for variable in ("HOST", "USER", "PASSWORD", "DB"):
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{variable}", "x")
    shutil.copyfile(ROOT / "deploy" / name, tmp_path / "dagster.yaml")
    settings: dict[str, Any] = dict(InstanceRef.from_dir(str(tmp_path)).settings)
    assert settings["telemetry"] == {"enabled": False}
    assert settings["concurrency"] == {
        # One writes, and the others that may run start meanwhile.
        "pools": {"default_limit": 1, "granularity": "op", "op_granularity_run_buffer": runs - 1},
        "runs": {"max_concurrent_runs": runs},
    }
    assert settings["run_monitoring"]["enabled"] is True
    assert settings["run_retries"]["retry_on_asset_or_op_failure"] is False
    for ticks in ("schedule", "sensor", "auto_materialize"):
        assert 0 < settings["retention"][ticks]["purge_after_days"]["success"] <= 90


def test_dagster_in_compose_keeps_its_state_in_postgresql(services: dict[str, dict[str, Any]]) -> None:
    database = _yaml(ROOT / "deploy" / "dagster.yaml")["storage"]["custom"]["config"]["postgres_db"]
    wanted = {entry["env"] for entry in database.values() if isinstance(entry, dict)}
    assert "DAGSTER_POSTGRES_PASSWORD" in wanted
    for name in ("code-location", "dagster-webserver", "dagster-daemon"):
        assert wanted <= set(services[name]["environment"]), name


def test_postgres_makes_both_databases_with_the_passwords_that_compose_gives(
    services: dict[str, dict[str, Any]],
) -> None:
    script = ROOT / "deploy" / "postgres" / "init.sh"
    made = dict(
        re.findall(r'^create_database (\w+) "\$(\w+)"$', script.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert made == {"dagster": "DAGSTER_POSTGRES_PASSWORD", "mlflow": "MLFLOW_POSTGRES_PASSWORD"}
    assert set(made.values()) <= set(services["postgres"]["environment"])
    assert services["code-location"]["environment"]["DAGSTER_POSTGRES_DB"] in made
    mlflow = services["mlflow"]["environment"]
    assert mlflow["MLFLOW_BACKEND_STORE_URI"].rpartition("/")[2] in made
    # Both databases move together: to another server by one variable.
    assert f"database_uri = {mlflow['MLFLOW_BACKEND_STORE_URI']}\n" in (
        ROOT / "deploy" / "mlflow" / "auth.ini"
    ).read_text(encoding="utf-8")
    assert "@/" in mlflow["MLFLOW_BACKEND_STORE_URI"]
    assert mlflow["PGHOST"] == services["code-location"]["environment"]["DAGSTER_POSTGRES_HOST"]
    assert _mounts(services["postgres"])["./deploy/postgres/init.sh"] == (
        "/docker-entrypoint-initdb.d/init.sh",
        True,
    )


# --- workflows -----


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_bounded_and_pinned(workflow: Path) -> None:
    content = _yaml(workflow)
    assert content["permissions"] == {"contents": "read"}
    assert "concurrency" in content
    may_write = {name for name, job in content["jobs"].items() if "write" in str(job.get("permissions"))}
    assert may_write == {"release": {"image"}, "deploy": {"deploy"}}.get(workflow.stem, set())
    for name, job in content["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 60, name
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
    pushes = re.search(r"docker push|--push\b", workflow.read_text(encoding="utf-8"))
    assert bool(pushes) == (workflow.stem == "release")


def test_workflows_run_what_people_run() -> None:
    assert {path.stem for path in WORKFLOWS} == {
        *("check", "test", "dbt", "image", "audit", "release", "deploy")
    }
    commands = {
        path.stem: {
            step["run"] for job in _yaml(path)["jobs"].values() for step in job["steps"] if "run" in step
        }
        for path in WORKFLOWS
    }
    assert commands["check"] == {"make check", "make lint-deploy"}
    assert commands["test"] == {"make test", "make demo", "make test-all"}
    assert 'make dbt-slim COMMIT="$COMMIT"' in commands["dbt"]
    assert commands["audit"] == {"make audit"}
    assert commands["check"] | {"make test"} <= commands["release"]


def test_changed_models_are_built_beside_what_the_last_run_on_main_left() -> None:
    steps = _yaml(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["steps"]
    (left,) = (step["with"] for step in steps if "upload-artifact" in step.get("uses", ""))
    needed = re.search(
        r"^for file in (.+); do$", (ROOT / ".ci" / "dbt-slim").read_text("utf-8"), re.MULTILINE
    )
    assert needed
    assert left["path"].split() == [f".bike/{file}" for file in needed[1].split()]
    fetches = (ROOT / ".github" / "workflows" / "dbt.yml").read_text(encoding="utf-8")
    assert "--workflow test.yml --branch main" in fetches
    assert f"--name {left['name']} --dir .bike" in fetches


def test_workflow_tests_every_python_that_the_project_promises() -> None:
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", _project()["project"]["requires-python"])
    assert bounds
    promised = [f"3.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]
    matrix = _yaml(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == promised
    last = int(bounds[2]) - 1
    assert f"(3, {bounds[1]}) <= sys.version_info[:2] <= (3, {last})" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )


# --- Makefile and CI -----


def test_make_alone_lists_every_target_on_a_line_of_its_own() -> None:
    result = _make()
    assert result.returncode == 0, result.stderr
    listed = [line.split()[1] for line in result.stdout.splitlines()]
    assert sorted(listed) == sorted(TARGETS)
    for line in result.stdout.splitlines():
        assert len(line.split(maxsplit=2)) == 3, f"says nothing: {line}"


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("check", ["ruff check", "ruff format --check", "mypy", "lint-imports", "dg check defs"]),
        ("dbt-slim", ['.ci/dbt-slim ".bike" "HEAD"']),
        ("test", ['pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder']),
        ("test-all", ["pytest"]),
        ("demo", ['bike-assets demo --home ".bike"']),
        ("up", ['bike-assets up --home ".bike"']),
    ],
)
def test_make_runs_locked(target: str, commands: list[str]) -> None:
    result = _make("--dry-run", target)
    assert result.returncode == 0, result.stderr
    runs = [
        line.partition(" run --locked ")[2].strip() for line in result.stdout.splitlines() if " run " in line
    ]
    assert runs == commands


def _path_without_uv(folder: Path, *programs: str) -> str:
    for program in ("sh", "rm", *programs):
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    return str(folder)


def test_make_without_a_usable_python_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    tools = tmp_path / "tools"
    tools.mkdir()
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = _make("test", folder=tmp_path, path=_path_without_uv(tools))
    assert result.returncode != 0
    first, *rest = result.stderr.splitlines()
    assert "no Python 3.11, 3.12 or 3.13" in first
    assert "UV_PYTHON" in first
    assert all(line.startswith("make") for line in rest), rest
    assert not (tmp_path / ".uv-bootstrap").exists()


def test_make_fetches_uv_only_when_it_is_missing(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").symlink_to(sys.executable)
    without = _make("--dry-run", "test", folder=tmp_path, path=_path_without_uv(tools))
    assert re.search(r"-m venv \.uv-bootstrap", without.stdout), without.stdout + without.stderr
    assert ".uv-bootstrap/bin/uv run --locked pytest" in without.stdout
    uv = tools / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    with_uv = _make("--dry-run", "test", folder=tmp_path, path=str(tools))
    assert "venv" not in with_uv.stdout
    assert f"{uv} run --locked pytest" in with_uv.stdout


def test_ci_is_executable_valid_and_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    bash = shutil.which("bash")
    assert bash is not None
    result = subprocess.run(
        [bash, "-n", str(script)], capture_output=True, text=True, timeout=10, check=False
    )
    assert result.returncode == 0, result.stderr
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert re.findall(r"^step \w+ within \d+m (make .+)$", text, re.MULTILINE) == [
        "make check",
        "make test",
        "make demo",
    ]


def test_readme_names_only_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\s*make ([a-z-]+)", readme, re.MULTILINE)) | set(
        re.findall(r"`make ([a-z-]+)", readme)
    )
    assert {"demo", "test"} <= named, "the README tells how to see it run and how to test it"
    assert named <= TARGETS
