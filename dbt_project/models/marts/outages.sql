-- One row an outage: a run of zeros of a day or more, or hours without a count between two counts. Known in
-- retrospect, from its first hour to its last; is_outage of cleaned_counts is what each evening knew.
with counted as (
    select
        counter_id,
        ts_utc,
        hourly_count,
        lag(ts_utc) over hours as ts_before,
        lead(ts_utc) over hours as ts_after,
        lag(hourly_count) over hours as count_before
    from {{ ref("cleaned_counts") }}
    where hourly_count is not null and {{ every_day("service_date") }}
    window hours as (partition by counter_id order by ts_utc)
),

zeros as (
    select
        *,
        sum(case when count_before = 0 then 0 else 1 end) over (
            partition by counter_id order by ts_utc rows between unbounded preceding and current row
        ) as zero_run
    from counted
    where hourly_count = 0
),

newest as (
    select max(ts_utc) as ts_utc from {{ ref("cleaned_counts") }} where {{ every_day("service_date") }}
),

zero_runs as (
    select
        counter_id,
        min(ts_utc) as first_hour,
        max(ts_utc) as last_hour,
        max(case when ts_after is null then 1 else 0 end) = 1 as is_open
    from zeros
    group by counter_id, zero_run
    having count(*) >= {{ var("outage_hours") }}
),

gaps as (
    select
        counter_id,
        {{ hours_later("ts_before", 1) }} as first_hour,
        {{ hours_later("ts_utc", -1) }} as last_hour,
        false as is_open
    from counted
    where ts_before < {{ hours_later("ts_utc", -1) }}
    union all
    select
        counted.counter_id,
        {{ hours_later("counted.ts_utc", 1) }} as first_hour,
        newest.ts_utc as last_hour,
        true as is_open
    from counted
    cross join newest
    inner join {{ ref("counters") }} as counters on counted.counter_id = counters.counter_id
    where counted.ts_after is null and counted.ts_utc < newest.ts_utc and counters.status <> 'retired'
),

outages as (
    select *, 'zeros' as kind from zero_runs
    union all
    select *, 'gap' as kind from gaps
)

select
    counter_id,
    kind,
    first_hour,
    last_hour,
    {{ dbt.datediff("first_hour", "last_hour", "hour") }} + 1 as hours,
    is_open
from outages
