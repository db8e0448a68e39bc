{# What DuckDB and BigQuery write differently, each difference once. #}

{% macro day_number(column) -%}{{ return(adapter.dispatch("day_number")(column)) }}{%- endmacro %}
{% macro default__day_number(column) -%} date_diff('day', date '1970-01-01', {{ column }}) {%- endmacro %}
{% macro bigquery__day_number(column) -%} unix_date({{ column }}) {%- endmacro %}

{% macro days_before(day, days) -%}{{ return(adapter.dispatch("days_before")(day, days)) }}{%- endmacro %}
{% macro default__days_before(day, days) -%} {{ day }} - {{ days }} {%- endmacro %}
{% macro bigquery__days_before(day, days) -%} date_sub({{ day }}, interval {{ days }} day) {%- endmacro %}

{% macro hours_later(instant, hours) -%}{{ return(adapter.dispatch("hours_later")(instant, hours)) }}{%- endmacro %}
{% macro default__hours_later(instant, hours) -%} {{ instant }} + interval '{{ hours }} hours' {%- endmacro %}
{% macro bigquery__hours_later(instant, hours) -%} timestamp_add({{ instant }}, interval {{ hours }} hour) {%- endmacro %}

{% macro type_int32() -%}{{ return(adapter.dispatch("type_int32")()) }}{%- endmacro %}
{% macro default__type_int32() -%} integer {%- endmacro %}
{% macro bigquery__type_int32() -%} int64 {%- endmacro %}

{# Rows of the window are replaced in one transaction. DuckDB runs a model's hook and its insert in one (macros/window.sql);
   BigQuery runs each statement for itself, so there one MERGE does both. #}
{% macro window_strategy() -%}{{ return("merge" if target.type == "bigquery" else "append") }}{%- endmacro %}

{# The statement of every incremental model on BigQuery; it names the partitions it touches, which a table that must be
   asked by days demands. Its condition never holds: an old row of the window has no partner and neither has a new one. #}
{% macro bigquery__get_merge_sql(target, source, unique_key, dest_columns, incremental_predicates) -%}
{%- set columns = get_quoted_csv(dest_columns | map(attribute="name")) -%}
merge into {{ target }} as old using {{ source }} as new on false
when not matched by source and {{ in_window("old.service_date") }} then delete
when not matched by target then insert ({{ columns }}) values ({{ columns }})
{%- endmacro %}

{# Two runs may build a model at a time, for days of their own: their temporary tables need names of their own. #}
{% macro bigquery__make_temp_relation(base_relation, suffix) -%}
{{ return(base_relation.incorporate(path={"identifier": base_relation.identifier ~ suffix ~ "_" ~ invocation_id | replace("-", "")})) }}
{%- endmacro %}

{# BigQuery prunes by month and counter, and refuses a question that names no days; DuckDB by the order in which rows were
   written. #}
{% macro month_partitions() -%}
{{ return({"field": "service_date", "data_type": "date", "granularity": "month"} if target.type == "bigquery" else none) }}
{%- endmacro %}
{% macro counter_clusters() -%}{{ return(["counter_id"] if target.type == "bigquery" else none) }}{%- endmacro %}
{% macro asked_by_days() -%}{{ return(true if target.type == "bigquery" else none) }}{%- endmacro %}
{% macro stored_order(columns) -%}{{ return(adapter.dispatch("stored_order")(columns)) }}{%- endmacro %}
{% macro default__stored_order(columns) -%} order by {{ columns }} {%- endmacro %}
{% macro bigquery__stored_order(columns) -%} {%- endmacro %}
