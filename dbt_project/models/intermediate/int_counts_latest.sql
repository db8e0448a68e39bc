-- One row an hour and counter: the later export corrects the earlier. Where two exports end at the same hour the
-- larger count stands, because a correction fills the zeros of an outage.
with ranked as (
    select
        *,
        row_number() over (
            partition by counter_id, ts_utc
            order by published_until desc, coalesce(hourly_count, -1) desc, source_file desc
        ) as publication_rank
    from {{ ref("stg_counts") }}
    -- Two days before the range: a run of zeros that began there makes an outage here.
    where {{ day_number("service_date") }}
        between {{ day_number("cast('" ~ var("first_date") ~ "' as date)") }} - 2
        and {{ day_number("cast('" ~ var("last_date") ~ "' as date)") }}
),

revisions as (
    select
        counter_id,
        ts_utc,
        count(distinct coalesce(hourly_count, -1)) as revisions
    from ranked
    group by counter_id, ts_utc
)

select
    ranked.service_date,
    ranked.counter_id,
    ranked.ts_utc,
    ranked.local_hour,
    ranked.is_repeated,
    ranked.hourly_count,
    ranked.published_until,
    revisions.revisions
from ranked
inner join revisions on ranked.counter_id = revisions.counter_id and ranked.ts_utc = revisions.ts_utc
where ranked.publication_rank = 1
