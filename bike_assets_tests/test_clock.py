"""The clock that stamps what is made: the wall's, or the one that a replay set."""

from datetime import UTC, datetime, timedelta

from bike_assets import clock

PAST = datetime(2023, 5, 1, 6, 15, tzinfo=UTC)


def test_it_is_the_walls_until_another_is_set_and_again_afterwards() -> None:
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
    with clock.set_to(lambda: PAST):
        assert clock.now() == PAST
    assert clock.now() > PAST + timedelta(days=365)
