# Flows on CPU; the one-shot jobs and the Prefect server of the stack run from it too.
#   docker build -f docker/worker-cpu.Dockerfile -t cartridge-foundry/worker-cpu .
FROM python:3.11.14-slim-bookworm AS build
# An index that offers CPU builds of torch; without one the GPU packages come along (4 GB more).
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}
WORKDIR /src
RUN python -m venv /opt/cartridge
ENV PATH=/opt/cartridge/bin:$PATH
COPY constraints.txt ./
# By itself and first: a change of our code does not fetch it again.
RUN pip install -c constraints.txt torch==2.13.0
# What our code needs, asked for by an empty package: when the code changes, this layer is neither made nor shipped again.
COPY pyproject.toml ./
RUN mkdir cartridge_core flows migrations \
    && touch LICENSE README.md \
    && echo '__version__ = "0"' > cartridge_core/__init__.py \
    && pip install -c constraints.txt '.[eval,flows,gateway,peft,postgres,registry,train]' \
    && pip uninstall --yes cartridge-foundry
COPY . .
RUN pip install --no-deps --prefix=/ours .

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 1000 --create-home cartridge \
    && install -d -o cartridge -g cartridge /app /keys /var/lib/cartridge /var/lib/prefect
COPY --from=build /opt/cartridge /opt/cartridge
COPY --from=build /ours /opt/cartridge
WORKDIR /app
COPY prefect.toml prefect.yaml ./
COPY flows ./flows
COPY infra ./infra
ENV PATH=/opt/cartridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CARTRIDGE_HOME=/var/lib/cartridge \
    PREFECT_PLUGINS_ENABLED=true
USER 1000
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["prefect", "worker", "start", "--pool", "cpu", "--type", "process", "--with-healthcheck"]
