# The MLflow server: PostgreSQL behind it, artifacts proxied to S3. Configured by MLFLOW_* and AWS_* variables.
#   docker build -f docker/mlflow.Dockerfile -t cartridge-foundry/mlflow .
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/mlflow
ENV PATH=/opt/mlflow/bin:$PATH
COPY constraints.txt ./
# The client's own version, or its calls may not be understood; constraints.txt has the others.
RUN pip install -c constraints.txt mlflow==3.17.2 boto3 'psycopg[binary]'

FROM python:3.11.14-slim-bookworm
RUN useradd --uid 1000 --create-home mlflow
COPY --from=build /opt/mlflow /opt/mlflow
WORKDIR /home/mlflow
ENV PATH=/opt/mlflow/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 1000
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=6 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5000/health', timeout=5)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
