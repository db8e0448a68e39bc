-- One row an hour, counter and publication, with the local calendar of the hour and, where the row cannot be a count,
-- the reason why.
select
    raw.service_date,
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
    raw.source,
    raw.source_file,
    case
        when raw.is_stray then 'stray: hardly any counter of its file reported that day'
        when hours.ts_utc is null then 'not the start of an hour of its day'
        when raw.hourly_count < 0 then 'negative count'
        when raw.hourly_count <> floor(raw.hourly_count) then 'not a whole number'
    end as quarantine_reason
from {{ source("bike_traffic_raw", "raw_counts") }} as raw
left join {{ source("bike_traffic_raw", "calendar_hours") }} as hours
    on raw.ts_utc = hours.ts_utc and raw.service_date = hours.service_date
where {{ every_day("raw.service_date") }}
