# The OpenAI-compatible gateway, with the embedded engine in the same process or in front of vLLM.
#   docker build -f docker/gateway.Dockerfile -t cartridge-foundry/gateway .
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
# `registry`: promoting through the gateway rewrites MLflow's alias.
RUN mkdir cartridge_core flows migrations \
    && touch LICENSE README.md \
    && echo '__version__ = "0"' > cartridge_core/__init__.py \
    && pip install -c constraints.txt '.[gateway,postgres,registry,train]' \
    && pip uninstall --yes cartridge-foundry
COPY . .
RUN pip install --no-deps --prefix=/ours .

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 1000 --create-home cartridge \
    && install -d -o cartridge -g cartridge /app /var/lib/cartridge
COPY --from=build /opt/cartridge /opt/cartridge
COPY --from=build /ours /opt/cartridge
WORKDIR /app
COPY infra/gateway ./infra/gateway
ENV PATH=/opt/cartridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CARTRIDGE_HOME=/var/lib/cartridge
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["cartridge", "serve", "--host", "0.0.0.0", "--port", "8000"]
