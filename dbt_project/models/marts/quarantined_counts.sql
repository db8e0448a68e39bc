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

-- Rows that are not counts of an hour, with the reason: nothing is dropped silently.
select
    service_date,
    counter_id,
    ts_utc,
    hourly_count,
    quarantine_reason as reason,
    source,
    source_file
from {{ ref("stg_counts") }}
where quarantine_reason is not null and {{ in_window("service_date") }}
{{ stored_order("service_date, counter_id, ts_utc") }}
