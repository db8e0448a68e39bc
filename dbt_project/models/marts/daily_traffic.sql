-- One row a counter and day, for people: what was counted, and how much of the day that is.
with days as (
    select
        service_date,
        count(*) as hours
    from {{ source("bike_traffic_raw", "calendar_hours") }}
    group by service_date
),

peaks as (
    select
        counts.service_date,
        counts.counter_id,
        count(counts.hourly_count) as hours_counted,
        sum(case when counts.is_outage then 1 else 0 end) as outage_hours,
        sum(case when counts.is_spike then 1 else 0 end) as spike_hours,
        sum(case when counts.is_stuck then 1 else 0 end) as stuck_hours,
        sum(counts.hourly_count) as daily_count,
        max(counts.hourly_count) as busiest_hour_count
    from {{ ref("cleaned_counts") }} as counts
    where {{ every_day("counts.service_date") }}
    group by counts.service_date, counts.counter_id
)

select
    peaks.service_date,
    peaks.counter_id,
    cast(peaks.daily_count as {{ dbt.type_bigint() }}) as daily_count,
    peaks.busiest_hour_count,
    peaks.hours_counted,
    days.hours - peaks.hours_counted as missing_hours,
    cast(peaks.outage_hours as {{ dbt.type_bigint() }}) as outage_hours,
    cast(peaks.spike_hours as {{ dbt.type_bigint() }}) as spike_hours,
    cast(peaks.stuck_hours as {{ dbt.type_bigint() }}) as stuck_hours,
    peaks.hours_counted = days.hours and peaks.outage_hours + peaks.spike_hours + peaks.stuck_hours = 0 as is_complete
from peaks
inner join days on peaks.service_date = days.service_date
