{# What DuckDB and BigQuery write differently, each difference once. #}

{% macro day_number(column) -%}{{ return(adapter.dispatch("day_number")(column)) }}{%- endmacro %}
{% macro default__day_number(column) -%} date_diff('day', date '1970-01-01', {{ column }}) {%- endmacro %}
{% macro bigquery__day_number(column) -%} unix_date({{ column }}) {%- endmacro %}

{% macro type_int32() -%}{{ return(adapter.dispatch("type_int32")()) }}{%- endmacro %}
{% macro default__type_int32() -%} integer {%- endmacro %}
{% macro bigquery__type_int32() -%} int64 {%- endmacro %}
