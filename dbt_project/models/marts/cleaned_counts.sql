{{
    config(
        materialized="incremental",
        incremental_strategy=window_strategy(),
        on_schema_change="fail",
        partition_by=month_partitions(),
        cluster_by=counter_clusters(),
        require_partition_filter=asked_by_days(),
        pre_hook="{{ delete_window() }}",
    )
}}

-- One row a counter and hour, with quality flags. A flag of a day looks at that day and at most lookback_days before,
-- never ahead, so a partition comes out the same whether it is built alone or in a range.
with counts as (
    select * from {{ ref("int_counts_split") }}
),

neighbours as (
    select
        *,
        coalesce(hourly_count = lag(hourly_count) over hours, false) as equals_before,
        coalesce(hourly_count = lead(hourly_count) over hours, false) as equals_after
    from counts
    window hours as (partition by counter_id order by ts_utc)
),

-- Equal counts one after the other share a number: the run they form. Zeros make an outage, others a counter that is
-- stuck. A count that differs from both its neighbours is in no run, and most do: only the rest is numbered.
numbered as (
    select
        *,
        sum(case when equals_before then 0 else 1 end) over (
            partition by counter_id order by ts_utc rows between unbounded preceding and current row
        ) as run
    from neighbours
    where equals_before or equals_after
),

run_lengths as (
    select
        *,
        count(*) over (
            partition by counter_id, run
            order by {{ day_number("service_date") }}
            range between 2 preceding and current row
        ) as hours_in_run
    from numbered
),

runs as (
    select
        service_date, counter_id, ts_utc, local_hour, hourly_count, published_count, is_merged_hour, revisions,
        published_until, hours_in_run
    from run_lengths
    union all
    select
        service_date, counter_id, ts_utc, local_hour, hourly_count, published_count, is_merged_hour, revisions,
        published_until, 1 as hours_in_run
    from neighbours
    where not (equals_before or equals_after)
),

peaks as (
    select
        counter_id,
        service_date,
        max(hourly_count) as peak
    from counts
    group by counter_id, service_date
),

usual as (
    select
        counter_id,
        service_date,
        -- The geometric mean: a single spike among the days before hardly moves it. Dead days say nothing.
        exp(avg(case when peak > 0 then ln(peak) end) over days_before) as usual_peak,
        sum(case when peak > 0 then 1 else 0 end) over days_before as days_known
    from peaks
    window days_before as (
        partition by counter_id
        order by {{ day_number("service_date") }}
        range between {{ var("lookback_days") }} preceding and 1 preceding
    )
)

select
    runs.service_date,
    runs.counter_id,
    runs.ts_utc,
    cast(runs.local_hour as {{ type_int32() }}) as local_hour,
    cast(runs.hourly_count as {{ dbt.type_bigint() }}) as hourly_count,
    cast(runs.published_count as {{ dbt.type_bigint() }}) as published_count,
    runs.is_merged_hour,
    coalesce(runs.hourly_count = 0 and runs.hours_in_run >= {{ var("outage_hours") }}, false) as is_outage,
    coalesce(
        runs.hourly_count >= {{ var("impossible_hourly_count") }}
        or (
            usual.days_known >= {{ var("known_days") }}
            and usual.usual_peak >= {{ var("judged_peak") }}
            and (
                runs.hourly_count > {{ var("spike_factor") }} * usual.usual_peak
                or (
                    runs.hourly_count in ({{ var("register_values") | join(", ") }})
                    and runs.hourly_count > {{ var("register_factor") }} * usual.usual_peak
                )
            )
        ),
        false
    ) as is_spike,
    coalesce(
        runs.hourly_count > 0
        and (
            runs.hours_in_run >= {{ var("outage_hours") }}
            or (
                runs.hours_in_run >= {{ var("stuck_hours") }}
                and runs.hourly_count >= {{ var("stuck_minimum_count") }}
            )
        ),
        false
    ) as is_stuck,
    cast(runs.revisions as {{ type_int32() }}) as revisions,
    runs.published_until
from runs
inner join usual on runs.counter_id = usual.counter_id and runs.service_date = usual.service_date
where {{ in_window("runs.service_date") }}
{{ stored_order("service_date, counter_id, ts_utc") }}
