-- The row that holds both hours of the autumn clock change, as two: the portal leaves out the first of the two hours
-- that the clock shows twice and counts both in the second. Of an odd count the first hour, the earlier in the night,
-- has the larger half.
with latest as (
    select * from {{ ref("int_counts_latest") }}
),

clock_changes as (
    select
        service_date,
        min(ts_utc) as first_ts,
        max(ts_utc) as second_ts
    from {{ source("bike_traffic_raw", "calendar_hours") }}
    where is_repeated
    group by service_date
),

merged as (
    select
        repeated.counter_id,
        repeated.service_date,
        clock_changes.first_ts,
        clock_changes.second_ts
    from latest as repeated
    inner join clock_changes on repeated.service_date = clock_changes.service_date
    where repeated.is_repeated
    group by repeated.counter_id, repeated.service_date, clock_changes.first_ts, clock_changes.second_ts
    having count(*) = 1 and min(repeated.ts_utc) = clock_changes.second_ts
)

select
    latest.service_date,
    latest.counter_id,
    latest.ts_utc,
    latest.local_hour,
    case when merged.counter_id is null then latest.hourly_count else floor(latest.hourly_count / 2) end as hourly_count,
    latest.hourly_count as published_count,
    merged.counter_id is not null as is_merged_hour,
    latest.revisions,
    latest.published_until
from latest
left join merged on latest.counter_id = merged.counter_id and latest.ts_utc = merged.second_ts

union all

select
    latest.service_date,
    latest.counter_id,
    merged.first_ts as ts_utc,
    latest.local_hour,
    latest.hourly_count - floor(latest.hourly_count / 2) as hourly_count,
    latest.hourly_count as published_count,
    true as is_merged_hour,
    latest.revisions,
    latest.published_until
from latest
inner join merged on latest.counter_id = merged.counter_id and latest.ts_utc = merged.second_ts
