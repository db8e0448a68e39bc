-- One row an hour and counter: the later export corrects the earlier. Where two exports end at the same hour the
-- larger count stands, because a correction fills the zeros of an outage. Most hours are published once, and only the
-- others are ranked: finding them costs a fraction of ranking all.
with published as (
    select *
    from {{ ref("stg_counts") }}
    where quarantine_reason is null
        and {{ in_window("service_date", var("lookback_days")) }}
),

republished as (
    select
        counter_id,
        ts_utc
    from published
    group by counter_id, ts_utc
    having count(*) > 1
),

marked as (
    select
        published.*,
        republished.ts_utc is not null as is_republished
    from published
    left join republished on published.counter_id = republished.counter_id and published.ts_utc = republished.ts_utc
),

ranked as (
    select
        *,
        row_number() over publications as publication_rank,
        lead(coalesce(hourly_count, -1)) over publications as value_before
    from marked
    where is_republished
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
    1 as revisions
from marked
where not is_republished

union all

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
