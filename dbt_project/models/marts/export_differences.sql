-- Where two exports tell of the same hours and do not agree: a row a pair of exports, counter and kind of difference.
-- cleaned_counts keeps the later value of a correction, and what only one of the two has.
with counted as (
    select
        counter_id,
        counter_name,
        ts_utc,
        hourly_count,
        source_file,
        published_until
    from {{ ref("stg_counts") }}
    where quarantine_reason is null
),

-- Hours of which more than one export tells: of the others there is nothing to compare.
told_twice as (
    select ts_utc
    from counted
    group by ts_utc
    having min(source_file) <> max(source_file) or min(published_until) <> max(published_until)
),

published as (
    select
        counted.counter_id,
        counted.ts_utc,
        counted.source_file,
        counted.published_until,
        max(counted.counter_name) as counter_name,
        max(counted.hourly_count) as hourly_count
    from counted
    inner join told_twice on counted.ts_utc = told_twice.ts_utc
    group by counted.counter_id, counted.ts_utc, counted.source_file, counted.published_until
),

file_hours as (
    select
        ts_utc,
        source_file,
        published_until,
        count(*) as counters,
        max(count(*)) over (partition by ts_utc) as most_counters,
        count(*) over (partition by ts_utc) as files
    from published
    group by ts_utc, source_file, published_until
),

-- A file tells of an hour as a whole if it has at least half of the counters that another has: a few corrected rows
-- published on their own do not say that the other counters are gone.
whole as (
    select
        ts_utc,
        source_file,
        published_until,
        row_number() over (partition by ts_utc order by published_until desc, source_file desc) as from_newest,
        row_number() over (partition by ts_utc order by published_until, source_file) as from_oldest
    from file_hours
    where files > 1 and counters * 2 >= most_counters
),

shared_hours as (
    select
        newest.ts_utc,
        newest.source_file as newest_file,
        newest.published_until as newest_until,
        oldest.source_file as oldest_file,
        oldest.published_until as oldest_until
    from whole as newest
    inner join whole as oldest on newest.ts_utc = oldest.ts_utc
    where newest.from_newest = 1 and oldest.from_oldest = 1
),

compared as (
    select
        published.*,
        shared_hours.newest_file,
        shared_hours.newest_until,
        shared_hours.oldest_file,
        shared_hours.oldest_until,
        lag(published.hourly_count) over publications as count_before,
        lag(published.source_file) over publications as file_before,
        lead(published.source_file) over publications as file_after,
        max(case when published.source_file = shared_hours.newest_file then 1 else 0 end) over hour as in_newest,
        max(case when published.source_file = shared_hours.oldest_file then 1 else 0 end) over hour as in_oldest
    from published
    inner join shared_hours on published.ts_utc = shared_hours.ts_utc
    window
        hour as (partition by published.counter_id, published.ts_utc),
        publications as (
            partition by published.counter_id, published.ts_utc
            order by published.published_until, coalesce(published.hourly_count, -1), published.source_file
        )
),

file_counters as (
    select distinct counter_id, source_file from counted
),

differences as (
    select
        'corrected' as difference,
        file_before as earlier_file,
        source_file as later_file,
        counter_id,
        counter_name,
        ts_utc,
        count_before,
        hourly_count as count_after
    from compared
    where file_before is not null and coalesce(hourly_count, -1) <> coalesce(count_before, -1)

    union all

    select
        case when known.counter_id is null then 'vanished counter' else 'missing hours' end as difference,
        compared.source_file as earlier_file,
        compared.newest_file as later_file,
        compared.counter_id,
        compared.counter_name,
        compared.ts_utc,
        compared.hourly_count as count_before,
        null as count_after
    from compared
    left join file_counters as known
        on compared.counter_id = known.counter_id and compared.newest_file = known.source_file
    where compared.file_after is null and compared.in_newest = 0 and compared.published_until <= compared.newest_until

    union all

    select
        case when known.counter_id is null then 'new counter' else 'added hours' end as difference,
        compared.oldest_file as earlier_file,
        compared.source_file as later_file,
        compared.counter_id,
        compared.counter_name,
        compared.ts_utc,
        null as count_before,
        compared.hourly_count as count_after
    from compared
    left join file_counters as known
        on compared.counter_id = known.counter_id and compared.oldest_file = known.source_file
    where compared.file_before is null and compared.in_oldest = 0 and compared.published_until >= compared.oldest_until

    union all

    select
        'stray rows' as difference,
        null as earlier_file,
        source_file as later_file,
        counter_id,
        counter_name,
        ts_utc,
        null as count_before,
        hourly_count as count_after
    from {{ ref("stg_counts") }}
    where quarantine_reason like 'stray%'
)

select
    difference,
    earlier_file,
    later_file,
    counter_id,
    max(counter_name) as counter_name,
    count(*) as hours,
    min(ts_utc) as first_hour,
    max(ts_utc) as last_hour,
    cast(sum(count_before) as {{ dbt.type_bigint() }}) as count_before,
    cast(sum(count_after) as {{ dbt.type_bigint() }}) as count_after
from differences
group by difference, earlier_file, later_file, counter_id
