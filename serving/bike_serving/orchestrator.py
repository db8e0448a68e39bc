"""Starts the platform's jobs through Dagster's GraphQL API and says how their runs go.

Belongs here: two calls to Dagster and what their failures mean. Does not belong here: which jobs a caller may start.
No Dagster package is used: two queries need none of it.
"""

from dataclasses import dataclass
from typing import Any, Final

import httpx

from bike_assets.core.errors import PermanentError, TransientError

_LAUNCH: Final = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}"""

_RUN: Final = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run { runId jobName status startTime endTime tags { key value } }
    ... on Error { message }
  }
}"""

_SAME: Final = """
query Same($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 1) { __typename ... on Runs { results { runId } } }
}"""


class OrchestratorAwayError(TransientError):
    """Dagster cannot be reached, or does not answer as it should."""


class JobRefusedError(PermanentError):
    """Dagster answers, but will not start the job so."""


@dataclass(frozen=True)
class Run:
    """A run of a job. Moments are seconds since 1970; None while it has not begun or ended."""

    run_id: str
    job: str
    status: str
    started_at: float | None
    ended_at: float | None


class Orchestrator:
    """One code location of a Dagster web server."""

    def __init__(self, url: str, location: str, timeout_seconds: float = 20.0) -> None:
        self._url, self._location = url, location
        # Jobs are started a few times a day: no connection is worth keeping.
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=timeout_seconds,
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def launch(self, job: str, run_config: dict[str, Any], tags: dict[str, str]) -> str:
        """Start a job; it runs on after this returns.

        Returns:
            The id of its run.

        Raises:
            OrchestratorAwayError: Dagster cannot be asked.
            JobRefusedError: there is no such job, or it takes no such configuration.
        """
        params = {
            "selector": {
                "repositoryLocationName": self._location,
                "repositoryName": "__repository__",
                "jobName": job,
            },
            "runConfigData": run_config,
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answered = (await self._ask(_LAUNCH, params=params))["launchRun"]
        if answered["__typename"] == "LaunchRunSuccess":
            return str(answered["run"]["runId"])
        faults = answered.get("errors") or [answered]
        reason = " ".join(str(faults[0].get("message") or answered["__typename"]).split())[:300]
        raise JobRefusedError(f"Dagster does not start the job {job}: {reason}")

    async def started_with(self, key: str, value: str) -> str | None:
        """The run that has a tag, if there is one."""
        answered = (await self._ask(_SAME, filter={"tags": [{"key": key, "value": value}]}))["runsOrError"]
        results = answered.get("results") or []
        return str(results[0]["runId"]) if results else None

    async def run(self, run_id: str) -> Run | None:
        """A run by its id; None where there is none.

        Raises:
            OrchestratorAwayError: Dagster cannot be asked.
        """
        found = (await self._ask(_RUN, id=run_id))["runOrError"]
        if found["__typename"] == "RunNotFoundError":
            return None
        if found["__typename"] != "Run":
            raise OrchestratorAwayError(f"Dagster cannot tell of a run ({found['__typename']})")
        return Run(found["runId"], found["jobName"], found["status"], found["startTime"], found["endTime"])

    async def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        try:
            answer = await self._client.post("/graphql", json={"query": query, "variables": variables})
            answer.raise_for_status()
            data: dict[str, Any] = answer.json()["data"]
            if not isinstance(data, dict):
                raise TypeError("no data")
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise OrchestratorAwayError(
                f"Dagster cannot be asked ({type(error).__name__}); the operator finds why in its log"
            ) from error
        return data
