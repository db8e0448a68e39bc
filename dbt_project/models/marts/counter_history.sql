-- One row a counter and span of days in which name, site and position stayed the same, as published last. A name that
-- an export leaves out says nothing; a position that moves less than moved_degrees a day is the same place.
with descriptions as (
    select
        counter_id,
        service_date,
        counter_name,
        site_id,
        site_name,
        latitude,
        longitude,
        row_number() over (
            partition by counter_id, service_date order by published_until desc, max(ts_utc) desc, source_file desc
        ) as publication_rank
    from {{ ref("stg_counts") }}
    where quarantine_reason is null
    group by
        counter_id, service_date, counter_name, site_id, site_name, latitude, longitude, published_until, source_file
),

filled as (
    select
        counter_id,
        service_date,
        last_value(counter_name ignore nulls) over so_far as counter_name,
        last_value(site_id ignore nulls) over so_far as site_id,
        last_value(site_name ignore nulls) over so_far as site_name,
        last_value(latitude ignore nulls) over so_far as latitude,
        last_value(longitude ignore nulls) over so_far as longitude
    from descriptions
    where publication_rank = 1
    window so_far as (
        partition by counter_id order by service_date rows between unbounded preceding and current row
    )
),

compared as (
    select
        *,
        coalesce(counter_name <> lag(counter_name) over days, false) as is_renamed,
        coalesce(site_id <> lag(site_id) over days, false) as is_other_site,
        coalesce(
            abs(latitude - lag(latitude) over days) > {{ var("moved_degrees") }}
            or abs(longitude - lag(longitude) over days) > {{ var("moved_degrees") }},
            false
        ) as is_moved
    from filled
    window days as (partition by counter_id order by service_date)
),

spans as (
    select
        *,
        sum(case when is_renamed or is_other_site or is_moved then 1 else 0 end) over (
            partition by counter_id order by service_date rows between unbounded preceding and current row
        ) as span_number
    from compared
),

described as (
    select
        counter_id,
        span_number,
        min(service_date) as valid_from,
        max(counter_name) as counter_name,
        max(site_id) as site_id,
        max(site_name) as site_name,
        max(latitude) as latitude,
        max(longitude) as longitude,
        max(case when is_renamed then 1 else 0 end) = 1 as is_renamed,
        max(case when is_other_site then 1 else 0 end) = 1 as is_other_site,
        max(case when is_moved then 1 else 0 end) = 1 as is_moved
    from spans
    group by counter_id, span_number
)

select
    counter_id,
    valid_from,
    {{ days_before("lead(valid_from) over (partition by counter_id order by valid_from)", 1) }} as valid_to,
    counter_name,
    site_id,
    site_name,
    latitude,
    longitude,
    is_renamed,
    is_other_site,
    is_moved
from described
