# The image of cluster/kuberay.yaml: cxrlt_ray with the exact versions of requirements.lock, among them the extras aws
# (which brings ray[default]: KubeRay's jobs and probes need its dashboard), transformers, xrv, dicom and postgres.
#
#   docker build -t cxrlt-ray:0.1.0 .
#   docker run --rm --gpus all --shm-size 8g -v cxrlt-runs:/work/runs cxrlt-ray:0.1.0 sweep task1
#
# Python's slim image is enough for GPUs: torch's wheels bring CUDA's libraries, and the node its driver.
FROM python:3.11-slim-bookworm

# KubeRay's probes of a pod's health are calls of wget; torch.compile on a GPU builds its launchers with a C compiler
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home cxrlt \
    && install --directory --owner=cxrlt /work /work/runs

# before the code: a change of it leaves this layer of some 6 GB alone. Compiled now, as its user may not write there
COPY requirements.lock /opt/cxrlt_ray/
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir uv \
    && /opt/venv/bin/uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python \
        --require-hashes -r /opt/cxrlt_ray/requirements.lock

COPY pyproject.toml README.md LICENSE /opt/cxrlt_ray/
COPY cxrlt_ray /opt/cxrlt_ray/cxrlt_ray
COPY search_spaces /opt/cxrlt_ray/search_spaces
COPY ensembles /opt/cxrlt_ray/ensembles
COPY cohorts /opt/cxrlt_ray/cohorts
COPY label_rules /opt/cxrlt_ray/label_rules
COPY descriptions /opt/cxrlt_ray/descriptions
COPY pretraining /opt/cxrlt_ray/pretraining
RUN /opt/venv/bin/uv pip install --no-cache --compile-bytecode --python /opt/venv/bin/python --no-deps /opt/cxrlt_ray
COPY cluster /opt/cxrlt_ray/cluster

# as cxrlt_ray.stream gives it to a Ray of its own; here KubeRay starts Ray
ENV PATH=/opt/venv/bin:$PATH \
    RAY_idle_worker_killing_time_threshold_ms=600000 \
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

# by number, so that Kubernetes sees that it is not root
USER 1000
WORKDIR /work
ENTRYPOINT ["cxrlt-ray"]
CMD ["--help"]
