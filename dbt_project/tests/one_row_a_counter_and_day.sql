-- No counter has two days of traffic on one day.
select counter_id, service_date
from {{ ref("daily_traffic") }}
group by counter_id, service_date
having count(*) > 1
