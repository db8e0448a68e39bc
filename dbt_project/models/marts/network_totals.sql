-- One row a day, for people. Totals of days on which different counters reported cannot be compared; the mean over
-- counters whose day is complete can.
select
    service_date,
    count(*) as counters,
    count(case when is_complete then 1 end) as complete_counters,
    cast(sum(daily_count) as {{ dbt.type_bigint() }}) as total_count,
    avg(case when is_complete then daily_count end) as mean_daily_count
from {{ ref("daily_traffic") }}
group by service_date
