{# The partitions to build, both ends included, from BIKE_FIRST_DATE and BIKE_LAST_DATE; every day without them. They
   come from the environment and not from --vars, because a change of vars makes dbt parse the whole project again; and
   only while SQL is compiled, because a change of what was read while parsing makes it parse these models again. #}

{% macro first_date() -%} cast('{{ env_var("BIKE_FIRST_DATE", "2016-01-01") if execute else "2016-01-01" }}' as date) {%- endmacro %}
{% macro last_date() -%} cast('{{ env_var("BIKE_LAST_DATE", "2099-12-31") if execute else "2099-12-31" }}' as date) {%- endmacro %}

{% macro in_window(column, lookback_days=0) -%}
{{ column }} between
{%- if lookback_days %} {{ days_before(first_date(), lookback_days) }}{% else %} {{ first_date() }}{% endif %} and {{ last_date() }}
{%- endmacro %}

{# Every day, said aloud: BigQuery refuses to read a table of many days without a word of which. #}
{% macro every_day(column) -%} {{ column }} >= cast('1900-01-01' as date) {%- endmacro %}

{# A partition is replaced: what stood there goes in the transaction that writes anew. #}
{% macro delete_window() -%}
{% if is_incremental() and target.type != "bigquery" %}delete from {{ this }} where {{ in_window("service_date") }}{% endif %}
{%- endmacro %}
