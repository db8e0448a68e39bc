-- One row an hour and counter: the later export corrects the earlier. Where two exports end at the same hour the
-- larger count stands, because a correction fills the zeros of an outage.
with published as (
    select *
    from {{ ref("stg_counts") }}
    where quarantine_reason is null
        and {{ in_window("service_date", var("lookback_days")) }}
),

ranked as (
    select
        *,
        row_number() over publications as publication_rank,
        lead(coalesce(hourly_count, -1)) over publications as value_before
    from published
    window publications as (
        partition by counter_id, ts_utc
        order by published_until desc, coalesce(hourly_count, -1) desc, source_file desc
    )
),

counted as (
    select
        *,
        1 + sum(case when value_before <> coalesce(hourly_count, -1) then 1 else 0 end) over (
            partition by counter_id, ts_utc
        ) as revisions
    from ranked
)

select
    service_date,
    counter_id,
    ts_utc,
    local_hour,
    is_repeated,
    hourly_count,
    published_until,
    revisions
from counted
where publication_rank = 1
