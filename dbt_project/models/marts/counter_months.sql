-- One row a counter and month of its life: how much of it was counted, and what the rest was.
with days as (
    select
        service_date,
        count(*) as hours,
        min(ts_utc) as first_ts,
        max(ts_utc) as last_ts
    from {{ source("bike_traffic_raw", "calendar_hours") }}
    group by service_date
),

newest as (
    select max(last_seen) as ts_utc from {{ ref("counters") }}
),

lives as (
    select
        counters.counter_id,
        counters.first_seen,
        case when counters.status = 'retired' then counters.last_seen else newest.ts_utc end as until
    from {{ ref("counters") }} as counters
    cross join newest
),

expected as (
    select
        lives.counter_id,
        cast({{ dbt.date_trunc("month", "days.service_date") }} as date) as month,
        days.service_date,
        days.hours
    from lives
    inner join days on days.last_ts >= lives.first_seen and days.first_ts <= lives.until
)

select
    expected.month,
    expected.counter_id,
    count(*) as days,
    cast(sum(coalesce(traffic.hours_counted, 0)) as {{ dbt.type_bigint() }}) as hours_counted,
    cast(sum(coalesce(traffic.missing_hours, expected.hours)) as {{ dbt.type_bigint() }}) as missing_hours,
    cast(sum(coalesce(traffic.outage_hours, 0)) as {{ dbt.type_bigint() }}) as outage_hours,
    cast(sum(coalesce(traffic.spike_hours, 0)) as {{ dbt.type_bigint() }}) as spike_hours,
    cast(sum(coalesce(traffic.stuck_hours, 0)) as {{ dbt.type_bigint() }}) as stuck_hours,
    sum(coalesce(traffic.hours_counted - traffic.outage_hours, 0)) * 1.0 / sum(expected.hours) as coverage,
    cast(sum(coalesce(traffic.daily_count, 0)) as {{ dbt.type_bigint() }}) as monthly_count
from expected
left join {{ ref("daily_traffic") }} as traffic
    on expected.counter_id = traffic.counter_id and expected.service_date = traffic.service_date
group by expected.month, expected.counter_id
