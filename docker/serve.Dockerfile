# The image of clq-serve with its built-in model.
#
#   docker build -f docker/serve.Dockerfile -t clq-serve .
#   docker run --rm --init -p 127.0.0.1:8000:8000 clq-serve
#
# With what an extra of serve/pyproject.toml adds:  --build-arg EXTRA=gpu  (or otel)
# Another package index or a proxy: --build-arg PIP_INDEX_URL=... --build-arg https_proxy=...
# No BuildKit feature is used, so that the classic builder makes the same image.

ARG BASE=python:3.11-slim-bookworm

# 1. The dependencies.  Only the pins and the list in serve/pyproject.toml go in, so a change of code
#    leaves these 200 MB, the first layer of the final image, as they were.
FROM ${BASE} AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG EXTRA=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt serve/pyproject.toml docker/requirements.py ./
RUN python -m venv --without-pip /opt/clq \
 && python requirements.py pyproject.toml ${EXTRA} > requirements.txt \
 && pip --python /opt/clq/bin/python install -c constraints.txt -r requirements.txt

# 2. Our own package, installed beside, under /staged, to become a small layer of its own.
FROM dependencies AS project
COPY serve serve
RUN pip --python /opt/clq/bin/python install --no-deps --no-warn-script-location --root /staged ./serve

# 3. What runs.
FROM ${BASE}
COPY --from=dependencies /opt/clq /opt/clq
COPY --from=project /staged/opt/clq /opt/clq
COPY LICENSE /opt/clq/LICENSE
ENV PATH=/opt/clq/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# ONNX Runtime's wheels report to their maker unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
# Metrics and model control: on the loopback address of the container until CLQ_SERVE_ADMIN_HOST says
# otherwise, and never published by docker-compose.yml.
ENV CLQ_SERVE_ADMIN_PORT=8001
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "clq_serve.healthcheck"]
ENTRYPOINT ["clq-serve", "run", "--host", "0.0.0.0"]
