-- A counter has one name and place a day.
select counter_id, valid_from
from {{ ref("counter_history") }}
group by counter_id, valid_from
having count(*) > 1
