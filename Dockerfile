# One image for every Airflow service and worker; docker-compose.yml says which command each runs.
#   DEVICE        cpu, or gpu for one with CUDA
#   MODEL_SOURCE  as for `make model`; a model that is in model/inception_v3/ already is taken as it is
ARG DEVICE=cpu

FROM python:3.11.14-slim-bookworm AS environment-cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    AIRFLOW_HOME=/opt/airflow FEATURES_DATA_DIR=/var/lib/picture-features
# What the services write is in these folders, and a named volume takes its owner from them.
RUN useradd --uid 50000 --create-home airflow \
    && install --directory --owner=airflow --group=airflow /opt/airflow /opt/airflow/logs /var/lib/picture-features
WORKDIR /opt/picture-feature-index
COPY requirements.txt ./
RUN pip install --require-hashes --no-deps -r requirements.txt

FROM environment-cpu AS environment-gpu
COPY requirements-gpu.txt ./
RUN pip install --require-hashes --no-deps -r requirements-gpu.txt

# A stage of its own with no more than the build reads, so that other changes do not build the model again.
FROM environment-cpu AS model
COPY model/ model/
COPY tasks/__init__.py tasks/errors.py tasks/files.py tasks/machine.py tasks/settings.py tasks/statuses.py tasks/urls.py \
    tasks/
COPY tasks/inference/ tasks/inference/
COPY tasks/pictures/__init__.py tasks/pictures/containers.py tasks/pictures/picture.py tasks/pictures/
ARG MODEL_SOURCE=""
RUN python -m model.build

FROM environment-${DEVICE}
COPY --from=model /opt/picture-feature-index/model/ model/
# What is known of the model, so that the first run need not load it to name it.
COPY --from=model --chown=airflow:airflow /var/lib/picture-features/ /var/lib/picture-features/
COPY pyproject.toml ./
COPY docker/init.sh docker/
COPY sql/ sql/
COPY tasks/ tasks/
COPY plugins/ plugins/
COPY dags/ dags/
RUN pip install --no-deps --no-build-isolation --editable .
USER airflow
CMD ["airflow", "info"]
