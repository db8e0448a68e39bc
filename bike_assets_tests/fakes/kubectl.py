"""A kubectl without a cluster: renders as the real one, keeps what is applied, and writes down what it is told.

Belongs here: the commands that `deploy/kubernetes/blue-green` gives. Does not belong here: what a cluster does then.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

STATE = Path(os.environ["FAKE_KUBECTL_STATE"])


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """What was applied last, by name."""
    applied = STATE / "applied.yaml"
    documents = yaml.safe_load_all(applied.read_text(encoding="utf-8")) if applied.exists() else ()
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def write_down(line: str) -> None:
    with (STATE / "log").open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")


def main(command: str) -> None:
    scaled = STATE / "replicas.json"
    replicas = json.loads(scaled.read_text()) if scaled.exists() else {}
    if apply := re.fullmatch(r"apply --kustomize (\S+)", command):
        rendered = subprocess.run(
            [os.environ["REAL_KUBECTL"], "kustomize", apply[1]], capture_output=True, text=True, check=True
        )
        (STATE / "applied.yaml").write_text(rendered.stdout, encoding="utf-8")
        images = " ".join(
            f"{slot}={of_kind('Deployment')[f'serving-{slot}']['spec']['template']['spec']['containers'][0]['image']}"
            for slot in ("blue", "green")
        )
        write_down(f"apply {of_kind('Service')['serving']['spec']['selector']['slot']} {images}")
    elif command.startswith("--namespace bike get configmap slots"):
        for name, value in of_kind("ConfigMap").get("slots", {"data": {}})["data"].items():
            sys.stdout.write(f"{name}={value}\n")
    elif get := re.fullmatch(
        r"--namespace bike get deployment/(\S+) --output jsonpath=\{.spec.replicas\}", command
    ):
        sys.stdout.write(str(replicas.get(get[1], 3)))
    elif scale := re.fullmatch(r"--namespace bike scale deployment/(\S+) --replicas (\d+)", command):
        scaled.write_text(json.dumps({**replicas, scale[1]: int(scale[2])}))
        write_down(f"scale {scale[1]} {scale[2]}")
    elif wait := re.match(r"--namespace bike rollout status deployment/(\S+)", command):
        if wait[1] == os.environ.get("NEVER_READY"):
            sys.exit(1)
        write_down(f"ready {wait[1]}")
    else:
        sys.exit(f"no such command: {command}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
