-- One row a counter, described as it was published last.
with published as (
    select
        counter_id,
        counter_name,
        site_id,
        site_name,
        latitude,
        longitude,
        row_number() over (
            partition by counter_id order by published_until desc, ts_utc desc, source_file desc
        ) as publication_rank
    from {{ ref("stg_counts") }}
),

life as (
    select
        counter_id,
        min(ts_utc) as first_seen,
        max(ts_utc) as last_seen,
        count(*) as hours,
        avg(case when is_outage or is_spike then null else hourly_count end) as mean_hourly_count
    from {{ ref("cleaned_counts") }}
    group by counter_id
)

select
    life.counter_id,
    published.counter_name,
    published.site_id,
    published.site_name,
    published.latitude,
    published.longitude,
    life.first_seen,
    life.last_seen,
    life.hours,
    life.mean_hourly_count
from life
inner join published on life.counter_id = published.counter_id and published.publication_rank = 1
