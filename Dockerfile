# The relay's image: worker, gateway, Flower and sandbox are one image with different commands (docker-compose.yml).
#
#   docker build -t deployment-relay .
#
# BASE is any Debian with python3 ≥ 3.11, its venv module and CA certificates; `make image-check` builds on plain bookworm.
# An index or certificates of one's own go in as secrets, which no layer and no history keeps:
#
#   docker build --secret id=pip.conf,src=$HOME/.config/pip/pip.conf --secret id=ca.pem,src=/path/to/bundle.pem .
#
# (with `cert = /run/secrets/ca.pem` in that pip.conf).
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# Two environments: pip and the build backend stay behind in the first, the second is what ships.
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/relay
COPY requirements/build.txt requirements/runtime.txt requirements/
# Wheels only: no compiler is needed, and no package runs code of its own while it is installed.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    tools/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements/build.txt \
    && tools/bin/pip --python /opt/relay/bin/python install --quiet --require-hashes --only-binary :all: \
        -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
COPY workers workers
RUN tools/bin/python -m hatchling build -t wheel -d dist \
    && tools/bin/pip --python /opt/relay/bin/python install --quiet --no-deps --no-index dist/*.whl

FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deployment-relay" \
      org.opencontainers.image.description="Takes deployment events in one Redis round trip and owes their delivery to a deployment-tracking API." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/relay /opt/relay
# The root file system may be read-only; only /tmp is written to.
ENV PATH=/opt/relay/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /opt/relay
# By number, so that Kubernetes' runAsNonRoot can tell; nothing belongs to it, so any other number does as well.
USER 10001:10001
EXPOSE 8080
ENTRYPOINT ["relay"]
CMD ["--help"]
