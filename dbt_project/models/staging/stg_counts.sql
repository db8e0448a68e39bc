-- One row an hour, counter and publication, with the local calendar of the hour.
select
    hours.service_date,
    raw.counter_id,
    raw.counter_name,
    raw.site_id,
    raw.site_name,
    raw.latitude,
    raw.longitude,
    raw.ts_utc,
    hours.local_hour,
    hours.is_repeated,
    raw.hourly_count,
    raw.published_until,
    raw.source_file
from {{ source("bike_traffic_raw", "raw_counts") }} as raw
inner join {{ source("bike_traffic_raw", "calendar_hours") }} as hours on raw.ts_utc = hours.ts_utc
