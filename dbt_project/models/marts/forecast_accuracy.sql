-- The realised error of every vintage: sums from which RMSE, MAE, WAPE and skill of any grouping follow. Impossible
-- counts are no truth: training leaves them out too.
with errors as (
    select
        predictions.service_date as issue_date,
        counts.service_date,
        predictions.counter_id,
        predictions.horizon,
        predictions.model_version,
        counts.hourly_count as truth,
        predictions.forecast - counts.hourly_count as error,
        predictions.mean4 - counts.hourly_count as mean4_error,
        counts.hourly_count between predictions.lower_80 and predictions.upper_80 as in_80,
        counts.hourly_count between predictions.lower_90 and predictions.upper_90 as in_90
    from {{ source("bike_traffic_predictions", "predictions") }} as predictions
    inner join {{ ref("cleaned_counts") }} as counts
        on predictions.counter_id = counts.counter_id and predictions.target_ts = counts.ts_utc
    where counts.hourly_count is not null
        and not counts.is_spike
        and {{ every_day("counts.service_date") }}
        and {{ every_day("predictions.service_date") }}
)

select
    service_date,
    issue_date,
    counter_id,
    horizon,
    model_version,
    count(*) as hours,
    sum(truth) as truth_sum,
    sum(truth * truth) as truth_square_sum,
    sum(error) as error_sum,
    sum(abs(error)) as absolute_error_sum,
    sum(error * error) as squared_error_sum,
    sum(mean4_error * mean4_error) as mean4_squared_error_sum,
    sum(case when in_80 then 1 else 0 end) as hours_in_80,
    sum(case when in_90 then 1 else 0 end) as hours_in_90
from errors
group by service_date, issue_date, counter_id, horizon, model_version
