"""A change of champion may end at any step, and whoever comes next leaves log and registry in agreement."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bike_assets.core.contracts import AUDIT_LOG
from bike_assets.core.errors import PermanentError
from bike_assets.core.succession import NotAllowedError
from bike_assets.resources.audit import AUTOMATION, AuditLog
from bike_assets.resources.championship import Championship, ChampionStore, ChangeResult, Request
from bike_assets.resources.registry import CHAMPION, PREVIOUS
from bike_assets.resources.warehouse import DuckDBWarehouse
from bike_assets_tests.stores import Bundles, Registry, fresh_registry, no_bundles, version

STEPS = ("log:begun", "bundle", "champion", "previous", "log:done")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def registry() -> Registry:
    return fresh_registry()


@pytest.fixture
def open_title(tmp_path: Path, registry: Registry) -> Callable[..., Championship]:
    """Opens the championship anew, as another process would."""

    def open_(promoters: tuple[str, ...] = (), approvers: tuple[str, ...] = ()) -> Championship:
        audit = AuditLog(folder=str(tmp_path / "audit"), keys_dir=str(tmp_path / "keys"), env="local")
        store = ChampionStore(
            folder=str(tmp_path / "audit"), promoters=list(promoters), approvers=list(approvers)
        )
        return store.open(
            registry, no_bundles(), DuckDBWarehouse(path=str(tmp_path / "warehouse.duckdb")), audit
        )

    return open_


def ask(operation: str = "op", actor: str = "anna") -> Request:
    return Request(actor, "because", operation)


def events(title: Championship) -> list[str]:
    return title.warehouse.read(AUDIT_LOG)["event"].to_list()


def assert_agreement(title: Championship, registry: Registry) -> None:
    """Log, registry and signed chain say the same."""
    state = title.state()
    champion, previous = registry.by_alias(CHAMPION), registry.by_alias(PREVIOUS)
    assert state.unfinished is None
    assert state.champion == (champion.version if champion else None)
    assert state.previous == (previous.version if previous else None)
    assert title.audit.verify(title.warehouse) == []


def test_promotions_and_rollbacks_say_who_when_and_why(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title()
    assert title.promote(version("1"), ask("one")).outcome == "changed"
    assert title.promote(version("2"), ask("two")).champion == "2"
    result = title.rollback("2", ask("three", "ben"))

    assert (result.champion, result.previous, result.bundle_id) == ("1", None, "b" * 31 + "1")
    assert registry.done == [
        *("bundle of 1", "champion -> 1", "bundle of 2", "champion -> 2", "previous -> 1"),
        *("bundle of 1", "champion -> 1", "previous dropped"),
    ]
    assert registry.version("1").tags["rolled_back_by"] == "ben"
    assert registry.version("2").tags["promoted_because"] == "because"
    rows = title.warehouse.read(AUDIT_LOG)
    assert rows["event"].to_list() == [
        *("promotion_begun", "promoted", "promotion_begun", "promoted", "rollback_begun", "rolled_back")
    ]
    assert rows["actor"].to_list() == [*["anna"] * 4, *["ben"] * 2]
    assert rows["replaced_version"].to_list() == [None, None, "1", "1", "2", "2"]
    assert rows["data_hash"].null_count() == 0
    assert_agreement(title, registry)


def test_asking_again_is_no_second_change(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title()
    for number in ("1", "2", "3"):
        title.promote(version(number), ask(number))
    before = events(title)

    assert title.promote(version("3"), ask("new id")).outcome == "unchanged"
    assert title.rollback("3", ask("back")).outcome == "changed"
    assert title.rollback("3", ask("back")).outcome == "unchanged"
    assert title.rollback(None, ask("back")).outcome == "unchanged", "the same request, sent twice"
    assert title.promote(version("3"), ask("3")).outcome == "unchanged", "a retry of what was done long ago"

    assert registry.aliases[CHAMPION].version == "2"
    assert events(title) == [*before, "rollback_begun", "rolled_back"]


@pytest.mark.parametrize("kind", ["promotion", "rollback"])
@pytest.mark.parametrize(
    ("step", "after"),
    [(step, False) for step in STEPS] + [(STEPS[-1], True)],
    ids=[*(f"before {step}" for step in STEPS), "after all"],
)
def test_killed_at_any_step_and_mended_by_whoever_comes_next(
    registry: Registry,
    open_title: Callable[..., Championship],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    step: str,
    after: bool,
) -> None:
    title = open_title()
    title.promote(version("1"), ask("one"))
    title.promote(version("2"), ask("two"))

    with monkeypatch.context() as patch:
        _kill_at(patch, step, after)
        with pytest.raises(Killed):
            _change(open_title(), kind)

    moved = STEPS.index(step) + after > STEPS.index("champion")
    # The service follows the alias. What it says is explained by the log, whether or not anybody came since.
    serving = registry.aliases[CHAMPION].version
    new = "3" if kind == "promotion" else "1"
    assert serving == (new if moved else "2")
    last = title.warehouse.read(AUDIT_LOG).row(-1, named=True)
    assert last["model_version"] in (serving, "2", new)

    title = open_title()
    assert_agreement(title, registry)
    assert title.state().champion == serving
    assert registry.by_alias(CHAMPION).tags["bundle_id"] == "b" * 31 + serving  # type: ignore[union-attr]
    begun_only = step == "log:begun" and not after
    done = {"promotion": "promoted", "rollback": "rolled_back"}[kind]
    expected = [] if begun_only else [f"{kind}_begun", done if moved else "abandoned"]
    assert events(title)[4:] == expected

    # And asking again under the same id does what was asked, once.
    again = (
        title.promote(version("3"), ask("three"))
        if kind == "promotion"
        else title.rollback("2", ask("three"))
    )
    assert again.outcome == ("unchanged" if moved else "changed")
    assert again.champion == new
    assert_agreement(title, registry)


def _change(title: Championship, kind: str) -> ChangeResult:
    if kind == "promotion":
        return title.promote(version("3"), ask("three"))
    return title.rollback("2", ask("three"))


def _kill_at(patch: pytest.MonkeyPatch, step: str, after: bool) -> None:
    if step.startswith("log:"):
        append = AuditLog.append
        endings = ("_begun",) if step == "log:begun" else ("promoted", "rolled_back")

        def dying(self: AuditLog, warehouse: DuckDBWarehouse, *found: object) -> None:
            hit = any(event.event.endswith(endings) for event in found)  # type: ignore[attr-defined]
            if hit and not after:
                raise Killed
            append(self, warehouse, *found)  # type: ignore[arg-type]
            if hit:
                raise Killed

        patch.setattr(AuditLog, "append", dying)
        return
    do = Registry._step

    def stepping(self: Registry, what: str) -> None:
        hit = what.startswith(step)
        if hit and not after:
            raise Killed
        do(self, what)
        if not hit:
            return
        kind, _, number = what.partition(" -> ")
        if number:
            self.aliases[kind] = version(number)
        elif what.endswith("dropped"):
            self.aliases.pop(kind.split()[0], None)
        raise Killed

    patch.setattr(Registry, "_step", stepping)


def test_a_bundle_that_cannot_be_written_is_in_the_log(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title()
    title.promote(version("1"), ask("one"))
    Bundles.fails.append("the disk is full; make room")

    with pytest.raises(PermanentError, match="the disk is full"):
        title.promote(version("2"), ask("two"))

    assert events(title)[2:] == ["promotion_begun", "abandoned"]
    assert title.warehouse.read(AUDIT_LOG)["error_message"][3] == "the disk is full; make room"
    assert registry.aliases[CHAMPION].version == "1"
    assert_agreement(title, registry)


def test_an_alias_moved_by_hand_is_written_down(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title()
    title.promote(version("1"), ask("one"))
    registry.aliases[CHAMPION] = version("7")

    assert title.state().champion == "7"
    row = title.warehouse.read(AUDIT_LOG).row(-1, named=True)
    assert (row["event"], row["model_version"], row["replaced_version"]) == ("adopted", "7", "1")
    assert title.rollback("7", ask("two")).champion == "1"
    assert_agreement(title, registry)


def test_who_may_not_is_refused_and_nothing_moves(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title(promoters=("anna",), approvers=("clara",))
    for call in (
        lambda: title.promote(version("1"), ask("x", "ben")),
        lambda: title.rollback(None, ask("x", "ben")),
        lambda: title.approve(None, ask("x", "anna")),
        lambda: title.reject(None, ask("x", "anna")),
        lambda: title.rollback(None, ask("x", AUTOMATION)),
    ):
        with pytest.raises(NotAllowedError, match="may not"):
            call()
    assert registry.aliases == {}

    title.promote(version("1"), ask("one", AUTOMATION))
    title.promote(version("2"), ask("two", "anna"))
    assert registry.aliases[CHAMPION].version == "2"


def test_a_winner_over_somebody_who_no_longer_serves_is_not_promoted(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title()
    title.promote(version("1"), ask("one"))
    with pytest.raises(PermanentError, match="compared with version None, but 1 serves now"):
        title.promote(version("2"), ask("two"), against=None)
    with pytest.raises(PermanentError, match="compared with version 9, but 1 serves now"):
        title.promote(version("2"), ask("two"), against="9")
    title.promote(version("2"), ask("two"), against="1")
    assert registry.aliases[CHAMPION].version == "2"


def test_a_rejected_challenger_is_out(registry: Registry, open_title: Callable[..., Championship]) -> None:
    title = open_title()
    title.promote(version("1"), ask("one"))
    title.record_verdict(
        version("2"), ask("judge"), replaced_version="1", deployment_decision="awaits_approval"
    )

    assert title.reject("2", ask("no")).outcome == "rejected"

    assert title.state().barred == {"2"}
    with pytest.raises(PermanentError, match="no challenger waits"):
        title.approve("2", ask("yes"))
    assert registry.aliases[CHAMPION].version == "1"


def test_a_log_that_vanished_is_not_begun_anew(
    open_title: Callable[..., Championship], tmp_path: Path
) -> None:
    title = open_title()
    title.promote(version("1"), ask("one"))
    (tmp_path / "warehouse.duckdb").unlink()

    assert title.audit.verify(title.warehouse) != []
    with pytest.raises(PermanentError, match="says that there is an audit log"):
        open_title().promote(version("2"), ask("two"))


def test_50_calls_at_once_leave_one_champion_and_a_log_that_explains_it(
    registry: Registry, open_title: Callable[..., Championship]
) -> None:
    title = open_title()
    title.promote(version("1"), ask("start"))
    gate = threading.Barrier(50)
    failures: list[BaseException] = []

    def call(number: int) -> None:
        gate.wait()
        try:
            if number % 2:
                open_title().promote(version(str(2 + number % 7)), ask(f"promote {number}"))
            else:
                open_title().rollback(str(2 + number % 7), ask(f"back {number}"))
        except PermanentError as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert_agreement(title, registry)
    # The log alone, read from its first row, ends at the champion: every change begins where the one before ended.
    serving = None
    for row in title.warehouse.read(AUDIT_LOG).iter_rows(named=True):
        if row["event"].endswith("_begun"):
            assert row["replaced_version"] == serving
        elif row["event"] in ("promoted", "rolled_back"):
            serving = row["model_version"]
    assert serving == registry.aliases[CHAMPION].version
    # Every alias that ever moved has its row, in the same order.
    moves = [step.removeprefix("champion -> ") for step in registry.done if step.startswith("champion")]
    done = title.warehouse.read(AUDIT_LOG)
    assert moves == [
        row["model_version"]
        for row in done.iter_rows(named=True)
        if row["event"] in ("promoted", "rolled_back")
    ]
