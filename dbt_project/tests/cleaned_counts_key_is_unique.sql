-- No counter has two rows for one hour: the deduplication holds.
select counter_id, ts_utc
from {{ ref("cleaned_counts") }}
where {{ every_day("service_date") }}
group by counter_id, ts_utc
having count(*) > 1
