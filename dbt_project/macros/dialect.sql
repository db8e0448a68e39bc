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

{# How rows are added to a partition that delete_window has emptied. #}
{% macro append_strategy() -%}{{ return("merge" if target.type == "bigquery" else "append") }}{%- endmacro %}

{# BigQuery prunes by month and counter; DuckDB by the order in which rows were written. #}
{% macro month_partitions() -%}
{{ return({"field": "service_date", "data_type": "date", "granularity": "month"} if target.type == "bigquery" else none) }}
{%- endmacro %}
{% macro stored_order(columns) -%}{{ return(adapter.dispatch("stored_order")(columns)) }}{%- endmacro %}
{% macro default__stored_order(columns) -%} order by {{ columns }} {%- endmacro %}
{% macro bigquery__stored_order(columns) -%} {%- endmacro %}
