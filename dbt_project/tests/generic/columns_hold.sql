{# What the schema file says of a model's columns: each is never null, unless its meta says `nullable`, and keeps the
   condition under `holds`, if it is not null. A row a broken column, with the number of rows that break it. One query a
   model: dbt's own tests are one a column, and starting eighty of them took longer than building what they read. #}
{% test columns_hold(model) %}
{{ config(fail_calc="coalesce(sum(broken_rows), 0)") }}
{%- set rules = [] -%}
{%- set asks_for_days = false -%}
{%- if execute -%}
    {%- set found = graph.nodes.values() | selectattr("resource_type", "equalto", "model")
        | selectattr("name", "equalto", model.identifier) | first -%}
    {%- set asks_for_days = found.config.get("require_partition_filter") -%}
    {%- for column in found.columns.values() -%}
        {%- set meta = column.config.meta -%}
        {%- if not meta.get("nullable") -%}
            {%- do rules.append((column.name ~ " is null", column.name ~ " is null")) -%}
        {%- endif -%}
        {%- if meta.get("holds") -%}
            {%- do rules.append(("not (" ~ meta["holds"] ~ ")", "not " ~ meta["holds"])) -%}
        {%- endif -%}
    {%- endfor -%}
{%- endif %}
with counted as (
    select
        {% for condition, _ in rules -%}
        sum(case when {{ condition }} then 1 else 0 end) as rule_{{ loop.index }},
        {% endfor -%}
        count(*) as all_rows
    from {{ model }}
    {% if asks_for_days %}where {{ every_day("service_date") }}{% endif %}
)

{% for _, broken in rules -%}
select '{{ broken | replace("'", "") }}' as broken, rule_{{ loop.index }} as broken_rows
from counted
where rule_{{ loop.index }} > 0
{{ "union all" if not loop.last }}
{% else -%}
select 'no column is described' as broken, 1 as broken_rows
{%- endfor %}
{% endtest %}
