# The platform: code location, web server, daemon and MLflow server are one image with different commands, so that
# their libraries cannot differ. Build from the repository's root: docker build -f deploy/platform.Dockerfile .

FROM python:3.12-slim-bookworm AS dependencies

ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never \
    UV_PROJECT_ENVIRONMENT=/opt/bike/venv \
    DBT_SEND_ANONYMOUS_USAGE_STATS=false \
    DO_NOT_TRACK=true
RUN python -m pip install --no-cache-dir --disable-pip-version-check "uv==0.13.8"

WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY serving/pyproject.toml serving/pyproject.toml
RUN uv sync --locked --no-dev --extra platform --no-install-workspace


FROM dependencies AS build

ENV PATH=/opt/bike/venv/bin:$PATH \
    PYTHONPATH=/opt/bike/own
COPY README.md LICENSE ./
COPY bike_assets bike_assets
RUN uv pip install --python /opt/bike/venv --no-deps --target /opt/bike/own .

COPY dbt_project /opt/bike/dbt_project
# The manifest is made here, not by every process that starts.
WORKDIR /opt/bike/dbt_project
RUN rm -rf target logs \
    && BIKE_WAREHOUSE=/tmp/parse.duckdb dbt parse --project-dir . --profiles-dir . \
    && test -s target/manifest.json \
    && rm -rf logs


FROM python:3.12-slim-bookworm

RUN groupadd --system --gid 10001 bike \
    && useradd --system --uid 10001 --gid bike --create-home --home-dir /home/bike bike \
    && install -d -o bike -g bike /data /data/bundles /data/keys /data/exports /public-key /mlartifacts \
        /var/lib/dagster /var/lib/dagster/compute_logs

# What changes least comes first: a release is a few megabytes above the dependencies of the last one.
COPY --from=dependencies --chown=bike:bike /opt/bike/venv /opt/bike/venv
COPY --from=build --chown=bike:bike /opt/bike/own /opt/bike/own
COPY --from=build --chown=bike:bike /opt/bike/dbt_project /opt/bike/dbt_project
COPY --chown=bike:bike deploy/dagster.yaml deploy/workspace.yaml /opt/bike/dagster/
COPY --chown=bike:bike deploy/mlflow /opt/bike/mlflow
COPY deploy/with-secrets /usr/local/bin/with-secrets

ENV PATH=/opt/bike/own/bin:/opt/bike/venv/bin:$PATH \
    PYTHONPATH=/opt/bike/own \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/opt/bike/dagster \
    BIKE_DBT_PROJECT_DIR=/opt/bike/dbt_project \
    BIKE_HOME=/data \
    DAGSTER_DISABLE_TELEMETRY=1 \
    DBT_SEND_ANONYMOUS_USAGE_STATS=false \
    DO_NOT_TRACK=true \
    GX_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true

# An image has no .git to ask: docker build --build-arg GIT_COMMIT="$(git rev-parse HEAD)" ...
ARG GIT_COMMIT=unknown
ENV BIKE_GIT_COMMIT=$GIT_COMMIT

USER 10001:10001
WORKDIR /opt/bike
EXPOSE 3000 4000 5000
ENTRYPOINT ["with-secrets"]
CMD ["dagster", "api", "grpc", "--module-name", "bike_assets.definitions", "--location-name", "bike_assets", "--host", "0.0.0.0", "--port", "4000"]
