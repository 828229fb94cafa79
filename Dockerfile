# Two images: `operator` (no torch) and `runtime` (store, model, agents, driver; most of it is torch).
#
#   docker build --target operator --tag hermes-operator:0.1.0 .
#   docker build --target runtime  --tag hermes-runtime:0.1.0 .
#   docker build --target runtime  --tag hermes-runtime:0.1.0-slim --build-arg REQUIREMENTS=runtime-slim .
#
# The slim runtime runs the store and scripted models. BASE_IMAGE is any Linux with Python 3.11 or newer,
# its venv, and CA certificates. Nothing here goes beyond what the classic builder understands.
#
# pip's settings are build arguments (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST); a CA bundle
# of your own lies in build/ca-bundle.crt. Both end with the stages that build, and are in no image.
# An image copies from these stages, what changes least first.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
# a name for the user id: libraries ask whose home this is
RUN groupadd --gid 10001 hermes \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin hermes
ENV PATH=/opt/hermes/app/bin:/opt/hermes/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM base AS tools
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_INDEX_URL=${PIP_INDEX_URL} \
    PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_TRUSTED_HOST=${PIP_TRUSTED_HOST} \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PATH=/opt/pip/bin:$PATH
# the pattern may match nothing; the file before it always does, and an empty COPY is refused
COPY LICENSE build/ca-bundle.cr[t] /opt/build/
# pip has an environment of its own, so that the one that ships has none
RUN python3 -m venv /opt/pip \
 && if [ -f /opt/build/ca-bundle.crt ]; then pip config --global set global.cert /opt/build/ca-bundle.crt; fi \
 && python3 -m venv --without-pip /opt/hermes/venv \
 && /opt/hermes/venv/bin/python -c 'import pathlib, sysconfig; \
      pathlib.Path(sysconfig.get_path("purelib"), "hermes.pth").write_text("/opt/hermes/app\n")'

FROM tools AS operator-packages
COPY requirements/operator.txt /opt/build/
RUN pip --python /opt/hermes/venv/bin/python install --quiet --no-deps --require-hashes \
      --only-binary :all: --requirement /opt/build/operator.txt

FROM operator-packages AS app
COPY pyproject.toml README.md LICENSE /opt/build/source/
COPY proto/gen/hermes /opt/build/source/proto/gen/hermes
COPY operator/hermes_operator /opt/build/source/operator/hermes_operator
COPY runtime/hermes_runtime /opt/build/source/runtime/hermes_runtime
RUN pip --python /opt/hermes/venv/bin/python install --quiet --no-deps --no-build-isolation \
      --target /opt/hermes/app /opt/build/source

FROM base AS operator
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="hermes-operator" \
      org.opencontainers.image.description="Reconciles HermesRun resources into pods." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=operator-packages /opt/hermes/venv /opt/hermes/venv
COPY --from=app /opt/hermes/app /opt/hermes/app
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["hermes-operator"]
CMD ["run"]

FROM tools AS runtime-packages
ARG REQUIREMENTS=runtime
COPY requirements/${REQUIREMENTS}.txt /opt/build/requirements.txt
RUN pip --python /opt/hermes/venv/bin/python install --quiet --no-deps --require-hashes \
      --only-binary :all: --requirement /opt/build/requirements.txt

FROM runtime-packages AS cache
# only what says which packages mutants are made of, so that other changes leave this layer alone
COPY runtime/hermes_runtime/__init__.py runtime/hermes_runtime/errors.py /opt/build/hermes_runtime/
COPY runtime/hermes_runtime/evaluate/__init__.py /opt/build/hermes_runtime/evaluate/
COPY runtime/hermes_runtime/evaluate/datasets/__init__.py \
     runtime/hermes_runtime/evaluate/datasets/packages.py \
     runtime/hermes_runtime/evaluate/datasets/packages.txt \
     runtime/hermes_runtime/evaluate/datasets/environment.txt \
     /opt/build/hermes_runtime/evaluate/datasets/
RUN cd /opt/build && python -c 'import pathlib; \
      from hermes_runtime.evaluate.datasets.packages import names, prepare; \
      prepare(names(), pathlib.Path("/opt/hermes/cache"), print)' \
 && chmod -R a+rX /opt/hermes/cache

FROM cache AS measured
# The packages' tests are run once here and not in every pod: which are sound, which lines they run, and
# the mutants of the examples. The tests run behind Landlock; where the builder has none: MEASURE=no.
ARG MEASURE=yes
COPY --from=app /opt/hermes/app /opt/hermes/app
RUN mkdir -p /opt/hermes/cache/baselines /opt/hermes/cache/decisions \
 && if [ "$MEASURE" = yes ]; then \
      HERMES_CACHE=/opt/hermes/cache hermes dataset mutants --count 20 --seed 42 --out /tmp/mutants.jsonl; \
    fi \
 && chmod -R a+rX /opt/hermes/cache

FROM base AS runtime
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="hermes-runtime" \
      org.opencontainers.image.description="Store, model, agents and driver of a HermesRun." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV HERMES_CACHE=/opt/hermes/cache
COPY --from=cache /opt/hermes/cache /opt/hermes/cache
COPY --from=runtime-packages /opt/hermes/venv /opt/hermes/venv
COPY --from=app /opt/hermes/app /opt/hermes/app
COPY --from=measured /opt/hermes/cache/baselines /opt/hermes/cache/baselines
COPY --from=measured /opt/hermes/cache/decisions /opt/hermes/cache/decisions
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["hermes"]
CMD ["--help"]
