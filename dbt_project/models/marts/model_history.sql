-- One row a model version that has forecast, with what its forecasts were worth where truth has come.
with issued as (
    select
        model_name,
        model_version,
        run_id,
        min(service_date) as first_issue_date,
        max(service_date) as last_issue_date,
        count(distinct service_date) as issue_dates,
        count(*) as forecasts
    from {{ source("bike_traffic_predictions", "predictions") }}
    where {{ every_day("service_date") }}
    group by model_name, model_version, run_id
),

realised as (
    select
        model_version,
        sum(hours) as hours,
        sum(truth_sum) as truth_sum,
        sum(truth_square_sum) as truth_square_sum,
        sum(absolute_error_sum) as absolute_error_sum,
        sum(squared_error_sum) as squared_error_sum,
        sum(mean4_squared_error_sum) as mean4_squared_error_sum,
        sum(hours_in_80) as hours_in_80,
        sum(hours_in_90) as hours_in_90
    from {{ ref("forecast_accuracy") }}
    group by model_version
)

select
    issued.model_name,
    issued.model_version,
    issued.run_id,
    issued.first_issue_date,
    issued.last_issue_date,
    issued.issue_dates,
    issued.forecasts,
    cast(coalesce(realised.hours, 0) as {{ dbt.type_bigint() }}) as hours_with_truth,
    sqrt(realised.squared_error_sum / nullif(realised.hours, 0)) as rmse,
    realised.absolute_error_sum / nullif(realised.truth_sum, 0) as wape,
    1 - realised.squared_error_sum / nullif(
        realised.truth_square_sum - realised.truth_sum * 1.0 * realised.truth_sum / nullif(realised.hours, 0), 0
    ) as r2,
    1 - sqrt(realised.squared_error_sum / nullif(realised.mean4_squared_error_sum, 0)) as skill,
    realised.hours_in_80 * 1.0 / nullif(realised.hours, 0) as coverage_80,
    realised.hours_in_90 * 1.0 / nullif(realised.hours, 0) as coverage_90
from issued
left join realised on issued.model_version = realised.model_version
