# vLLM with the Cartridge connector. Only gateways should reach it.
#   docker build -f docker/vllm.Dockerfile -t cartridge-foundry/vllm .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN pip install hatchling==1.33.0
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM vllm/vllm-openai:v0.32.0
COPY --from=build /wheels /wheels
# vLLM's own packages are the constraints: the base must move nothing there (tests install it into such an environment).
# hadolint ignore=DL3042
RUN python3 -m pip list --format=freeze --exclude-editable > /tmp/present.txt \
    && python3 -m pip install --no-cache-dir -c /tmp/present.txt /wheels/*.whl \
    && rm -r /wheels /tmp/present.txt \
    && (id 1000 >/dev/null 2>&1 || useradd --uid 1000 --create-home cartridge) \
    && install -d -o 1000 -g 1000 /var/lib/cartridge
WORKDIR /var/lib/cartridge
ENV HOME=/var/lib/cartridge \
    CARTRIDGE_HOME=/var/lib/cartridge \
    VLLM_NO_USAGE_STATS=1
USER 1000
EXPOSE 8001
# Weights are loaded and kernels compiled before it answers.
HEALTHCHECK --interval=15s --timeout=10s --start-period=900s --retries=4 \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/health', timeout=5)"]
ENTRYPOINT []
CMD ["cartridge", "engine", "--host", "0.0.0.0", "--port", "8001"]
