# fitserve in a container; docs/container.md has the commands.
# BASE: an image with Python 3.11 to 3.13 as python3 on PATH, with venv. EXTRA: nothing, gpu, jax or torch.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG EXTRA=
RUN command -v python3 >/dev/null || { echo "fitserve: expected python3 on PATH in BASE, found none" >&2; exit 1; }; \
    python3 -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"fitserve: expected Python 3.11 to 3.13 in BASE, got {v}")' && \
    python3 -m venv /opt/fitserve
WORKDIR /src
COPY requirements/serve.txt requirements/gpu.txt requirements/jax.txt requirements/torch.txt requirements/
# each list is whole: gpu, jax and torch hold all of serve
RUN /opt/fitserve/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
    --require-hashes -r "requirements/${EXTRA:-serve}.txt"
COPY pyproject.toml README.md ./
COPY app/ app/
RUN /opt/fitserve/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
    --no-index --no-deps --no-build-isolation .

FROM ${BASE}
# some bases ship the standard library without its bytecode, and the service may not write it
RUN python3 -m compileall -q "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" && \
    useradd --uid 10001 --user-group --home-dir /tmp --no-create-home --shell /usr/sbin/nologin fitserve && \
    install --directory --mode=0700 --owner=10001 --group=10001 /data
COPY --from=build /opt/fitserve /opt/fitserve
ENV PATH=/opt/fitserve/bin:$PATH \
    HOME=/tmp \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FITSERVE_HOST=0.0.0.0 \
    FITSERVE_PORT=8000 \
    FITSERVE_DATA_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['FITSERVE_PORT'] + '/readyz', timeout=4)"]
CMD ["fitserve", "serve"]
