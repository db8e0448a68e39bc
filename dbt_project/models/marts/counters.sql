-- One row a counter: as it was published last, what it stands with, and how it does.
with publications as (
    select
        counter_id,
        counter_name,
        site_id,
        site_name,
        latitude,
        longitude,
        row_number() over (
            partition by counter_id order by published_until desc, max(ts_utc) desc, source_file desc
        ) as publication_rank
    from {{ ref("stg_counts") }}
    where quarantine_reason is null
    group by counter_id, counter_name, site_id, site_name, latitude, longitude, published_until, source_file
),

current_names as (
    select * from publications where publication_rank = 1
),

newest as (
    select max(ts_utc) as ts_utc from {{ ref("cleaned_counts") }} where {{ every_day("service_date") }}
),

life as (
    select
        counter_id,
        min(ts_utc) as first_seen,
        max(ts_utc) as last_seen,
        max(case when hourly_count is not null and not is_outage then ts_utc end) as last_counted,
        count(*) as hours,
        sum(case when hourly_count is not null and not is_outage then 1 else 0 end) as counted_hours,
        avg(case when is_outage or is_spike or is_stuck then null else hourly_count end) as mean_hourly_count
    from {{ ref("cleaned_counts") }}
    where {{ every_day("service_date") }}
    group by counter_id
),

aged as (
    select
        life.*,
        {{ dbt.datediff("life.first_seen", "newest.ts_utc", "hour") }} as hours_since_first,
        {{ dbt.datediff("coalesce(life.last_counted, life.first_seen)", "newest.ts_utc", "hour") }} as hours_silent,
        {{ dbt.datediff("life.first_seen", "life.last_seen", "hour") }} + 1 as hours_of_life
    from life
    cross join newest
),

judged as (
    select
        *,
        case
            when hours_silent >= 24 * {{ var("retired_days") }} then 'retired'
            when hours_silent >= 24 * {{ var("silent_days") }} then 'silent'
            when hours_since_first < 24 * {{ var("new_days") }} then 'new'
            else 'active'
        end as status
    from aged
),

placed as (
    select
        counter_id,
        counter_name,
        site_id,
        site_name,
        latitude,
        longitude,
        -- Some sites have two ids and one name: they are one site.
        coalesce(min(site_id) over (partition by coalesce(site_name, site_id)), site_name) as site_key
    from current_names
),

-- The counter that took over: same name at the same site, first seen after this one was last seen.
successors as (
    select
        old.counter_id,
        new.counter_id as replaced_by,
        row_number() over (partition by old.counter_id order by new_life.first_seen, new.counter_id) as nearest
    from placed as old
    inner join judged as old_life on old.counter_id = old_life.counter_id
    inner join placed as new on old.site_key = new.site_key and old.counter_name = new.counter_name
    inner join judged as new_life on new.counter_id = new_life.counter_id
    where new_life.first_seen > old_life.last_seen
)

select
    judged.counter_id,
    placed.counter_name,
    placed.site_id,
    placed.site_name,
    placed.latitude,
    placed.longitude,
    judged.first_seen,
    judged.last_seen,
    judged.hours,
    judged.mean_hourly_count,
    placed.site_key,
    count(*) over (partition by placed.site_key) as counters_at_site,
    judged.last_counted,
    judged.status,
    -- A counter that is silent now lacks these hours too; one that is retired ended with its last row.
    judged.counted_hours * 1.0
    / (case when judged.status = 'retired' then judged.hours_of_life else judged.hours_since_first + 1 end) as coverage,
    successors.replaced_by
from judged
inner join placed on judged.counter_id = placed.counter_id
left join successors on judged.counter_id = successors.counter_id and successors.nearest = 1
