"""Waiting for a place in a pool, for both of our stores of events.

Belongs here: how long a run that found no place waits before it asks again. Does not belong here: who gets the place;
that is Dagster's.
"""

import time
from typing import TYPE_CHECKING, Final

from dagster._utils.concurrency import ConcurrencyClaimStatus

if TYPE_CHECKING:
    from dagster._core.storage.event_log import SqlEventLogStorage as _Store
else:
    _Store = object

WAIT_SECONDS: Final = 0.5


class WaitsForAPlace(_Store):
    """A store of events that answers "no place yet" after `WAIT_SECONDS` and wants to be asked again at once.

    Where a run's steps share its process, Dagster wants to sleep until it asks again, but for zero seconds
    (`InstanceConcurrencyContext.interval_to_next_pending_claim_check` is never above that), which keeps a processor
    busy. It asks after a second at first and after 15 in the end, while the pool may stand empty.
    """

    def claim_concurrency_slot(
        self, concurrency_key: str, run_id: str, step_key: str, priority: int | None = None
    ) -> ConcurrencyClaimStatus:
        """A place for a step, or the answer that there is none; arguments and meaning are Dagster's."""
        status = super().claim_concurrency_slot(concurrency_key, run_id, step_key, priority)
        if status.is_claimed:
            return status
        if not status.is_assigned and self.has_unassigned_slots(concurrency_key):
            # Freed between this step's look for a place and its note that it waits. Dagster hands on a place when one
            # is freed, so that nobody would ever get this one.
            self.assign_pending_steps([concurrency_key])
        time.sleep(WAIT_SECONDS)
        later: ConcurrencyClaimStatus = status.with_sleep_interval(0.0)
        return later
