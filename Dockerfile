# syntax=docker/dockerfile:1
# The one image of all processes: `docker build -t mirrorflow .`; compose runs it as `serve --no-worker` and as `worker`.

FROM node:22-slim AS graphiql
WORKDIR /build/web/graphiql
COPY web/graphiql/package.json web/graphiql/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY web/graphiql ./
RUN node build.mjs /graphiql

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /venv
WORKDIR /build
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY flow flow
COPY db db
COPY engine engine
COPY graph graph
COPY mirrorflow mirrorflow
COPY --from=graphiql /graphiql mirrorflow/static/graphiql
RUN /venv/bin/pip install --quiet --constraint requirements.lock '.[image,distributed]' \
    && /venv/bin/python -m compileall -q /venv/lib

FROM python:3.13-slim
LABEL org.opencontainers.image.title="Mirrorflow" org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 mirrorflow \
    && useradd --uid 10001 --gid mirrorflow --no-create-home --home-dir /data --shell /usr/sbin/nologin mirrorflow \
    && install --directory --owner=mirrorflow --group=mirrorflow --mode=0700 /data
COPY --from=build /venv /venv
# Where other containers reach it; who may is the business of the network and of tokens. Both kinds of process answer
# for their health on the same port.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MIRRORFLOW_HOST=0.0.0.0 \
    MIRRORFLOW_PORT=8000 \
    MIRRORFLOW_HEALTH_PORT=8000 \
    MIRRORFLOW_DATA_DIR=/data \
    MIRRORFLOW_LOG_FORMAT=json
USER mirrorflow
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready', timeout=5)"]
ENTRYPOINT ["mirrorflow"]
CMD ["serve"]
