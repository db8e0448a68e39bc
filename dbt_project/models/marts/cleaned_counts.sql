{{
    config(
        materialized="incremental",
        incremental_strategy="append",
        on_schema_change="fail",
        pre_hook="{% if is_incremental() %}delete from {{ this }} where service_date between cast('{{ var('first_date') }}' as date) and cast('{{ var('last_date') }}' as date){% endif %}",
    )
}}

-- One row a counter and hour, with quality flags. A flag of a day looks at that day and the two before, never
-- ahead, so a partition comes out the same whether it is built alone or in a range.
with latest as (
    select
        *,
        count(*) over (partition by counter_id, service_date, local_hour) as hours_on_clock,
        -- Zeros between two other values share this number: the run they form.
        sum(case when hourly_count = 0 then 0 else 1 end) over (
            partition by counter_id order by ts_utc rows between unbounded preceding and current row
        ) as zero_run
    from {{ ref("int_counts_latest") }}
),

runs as (
    select
        *,
        sum(case when hourly_count = 0 then 1 else 0 end) over (
            partition by counter_id, zero_run
            order by {{ day_number("service_date") }}
            range between 2 preceding and current row
        ) as zeros_in_run
    from latest
)

select
    service_date,
    counter_id,
    ts_utc,
    cast(local_hour as {{ type_int32() }}) as local_hour,
    cast(hourly_count as {{ dbt.type_bigint() }}) as hourly_count,
    -- The portal leaves out one of the two hours that the clock shows twice and counts both in the other.
    is_repeated and hours_on_clock = 1 as is_merged_hour,
    coalesce(hourly_count = 0 and zeros_in_run >= {{ var("outage_hours") }}, false) as is_outage,
    coalesce(hourly_count >= {{ var("impossible_hourly_count") }}, false) as is_spike,
    cast(revisions as {{ type_int32() }}) as revisions,
    published_until
from runs
where service_date between cast('{{ var("first_date") }}' as date) and cast('{{ var("last_date") }}' as date)
order by service_date, counter_id, ts_utc
