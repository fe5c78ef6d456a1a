# The agent, the operator's command, and the native clients of the agent for the nodes' CNI directory.
#
#   docker build -t shimlan .
#   docker buildx build --platform linux/amd64,linux/arm64 -t shimlan .
#
# BASE is any image with Python 3.11 or newer, pip and glibc, as delegated IPAM plugins may be linked with that.
# PIP_INDEX_URL, PIP_NO_INDEX and PIP_FIND_LINKS mean what pip's documentation says; wheels in a directory `wheelhouse`
# of the build context are at /src/wheelhouse.
ARG BASE=python:3.13-slim

# Only what of these files matters: what else changes in them is no reason to compile anew.
FROM ${BASE} AS flags
COPY Makefile pyproject.toml ./
RUN sed -n 's/^CLIENT_FLAGS := //p' Makefile > /flags && sed -n 's/^client = \["\(.*\)"\]$/\1/p' pyproject.toml > /compiler

FROM ${BASE} AS builder
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# The compiler is large and seldom changes: in a layer of its own, and not in the final image. LICENSE stands for what is
# always there: a directory of wheels need not be.
COPY LICENSE wheelhouse* wheelhouse/
COPY --from=flags /compiler ./
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --requirement compiler

# As `make client` does it, with its flags.
COPY --from=flags /flags ./
COPY cni/__init__.py cni/client/client.c cni/
RUN version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' cni/__init__.py) && \
    for machine in x86_64 aarch64; do \
        mkdir -p /opt/shimlan/share/shimlan/$machine && \
        /opt/build/bin/python -m ziglang cc -target $machine-linux-musl $(cat flags) \
            "-DSHIMLAN_VERSION=\"$version\"" -o /opt/shimlan/share/shimlan/$machine/shimlan cni/client.c || exit; \
    done

# An environment without pip, which the final image takes as it is.
COPY pyproject.toml README.md LICENSE ./
COPY bin bin
COPY ipam ipam
COPY cni cni
RUN python3 -m venv --without-pip /opt/shimlan && /opt/build/bin/pip --python /opt/shimlan/bin/python install .

FROM ${BASE}
LABEL org.opencontainers.image.title="shimlan" \
    org.opencontainers.image.description="Pods on the LAN by macvlan, reachable from their host: the agent" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/shimlan /opt/shimlan
ENV PATH=/opt/shimlan/bin:$PATH PYTHONUNBUFFERED=1
# Root, with the few capabilities that its manifest names, and a file system that can be read-only.
USER 0
ENTRYPOINT ["shimlanctl"]
CMD ["agent"]
