# syntax=docker/dockerfile:1.7
#
#   docker build --target gateway -t mtgr/gateway .            the service: no torch, no CUDA
#   docker build --target triton -t mtgr/triton .              Triton with our plugins
#   docker build --target engine-builder -t mtgr/engine-builder .   package -> engine, on its GPU
#
# Add `--sbom=true --provenance=true` to attach attestations to an image; each also carries the
# CycloneDX document of its Python environment, made below, at /opt/mtgr/sbom.cdx.json.

ARG PYTHON=3.11.7-slim-bookworm
ARG NVIDIA=25.10-py3

# ---- the gateway's environment, and what is in it
FROM python:${PYTHON} AS gateway-build
WORKDIR /src
COPY pyproject.toml README.md LICENSE mtgr.py ./
COPY model_def ./model_def
COPY engine_build ./engine_build
COPY plugins ./plugins
COPY service ./service
COPY loadtest ./loadtest
RUN python -m venv /opt/mtgr \
 && /opt/mtgr/bin/pip install --no-cache-dir --disable-pip-version-check .
RUN python -m venv /opt/sbom \
 && /opt/sbom/bin/pip install --no-cache-dir --disable-pip-version-check cyclonedx-bom==7.5.0 \
 && /opt/sbom/bin/cyclonedx-py environment --output-file /opt/mtgr/sbom.cdx.json /opt/mtgr/bin/python

FROM python:${PYTHON} AS gateway
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mtgr gateway" \
      org.opencontainers.image.description="Ranks with MTGR inside the caller's deadline" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=gateway-build /opt/mtgr /opt/mtgr
ENV PATH=/opt/mtgr/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MTGR_HOST=0.0.0.0 \
    MTGR_PORT=8000 \
    MTGR_MODELS="{\"home\":{\"package\":\"/packages/home\"}}"
# The root may be read-only: nothing is written but by the embedded Redis, which trials have here.
WORKDIR /var/lib/mtgr
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["/opt/mtgr/bin/mtgr", "health"]
# Exec form: the gateway is process 1 and gets SIGTERM itself.
ENTRYPOINT ["/opt/mtgr/bin/mtgr"]
CMD ["serve"]

# ---- plugins, compiled against the very TensorRT that serves them
FROM nvcr.io/nvidia/tensorrt:${NVIDIA} AS plugins
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN pip install --no-cache-dir cmake==3.31.10 \
 && mkdir -p /opt/tensorrt && ln -s /usr/include/x86_64-linux-gnu /opt/tensorrt/include
COPY plugins ./plugins
RUN cmake -S plugins -B build/plugins -DTENSORRT_ROOT=/opt/tensorrt \
 && cmake --build build/plugins --target mtgr_ops mtgr_tensorrt --parallel

# ---- Triton with the plugins, and with our base install for its Python backend
FROM nvcr.io/nvidia/tritonserver:${NVIDIA} AS triton
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mtgr triton" \
      org.opencontainers.image.description="Triton with MTGR's plugins" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /src
COPY pyproject.toml README.md LICENSE mtgr.py ./
COPY model_def ./model_def
COPY engine_build ./engine_build
COPY plugins ./plugins
COPY service ./service
COPY loadtest ./loadtest
# "[gpu]" brings PyTorch, which the kind cuda-graph needs.
ARG EXTRAS=""
RUN python3 -m venv /opt/mtgr \
 && /opt/mtgr/bin/pip install --no-cache-dir --disable-pip-version-check ".${EXTRAS}" \
 && python3 -m venv /opt/sbom \
 && /opt/sbom/bin/pip install --no-cache-dir --disable-pip-version-check cyclonedx-bom==7.5.0 \
 && /opt/sbom/bin/cyclonedx-py environment --output-file /opt/mtgr/sbom.cdx.json /opt/mtgr/bin/python
COPY --from=plugins /src/build/plugins/libmtgr_ops.so /src/build/plugins/libmtgr_tensorrt.so /opt/mtgr/lib/
# Triton's Python backend takes the first python3 on the PATH.
ENV PATH=/opt/mtgr/bin:/opt/tritonserver/bin:/usr/local/bin:/usr/bin:/bin \
    MTGR_OPS_LIBRARY=/opt/mtgr/lib/libmtgr_ops.so
WORKDIR /
USER 1000:1000
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 \
  CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/v2/health/ready"]
# As the launch command of `mtgr repository` (SERVER_FLAGS), which says why.
ENTRYPOINT ["tritonserver", "--model-control-mode=explicit", "--exit-on-error=false", \
            "--grpc-http2-max-ping-strikes=0", \
            "--backend-config=tensorrt,plugins=/opt/mtgr/lib/libmtgr_tensorrt.so"]
CMD ["--model-repository=/models"]

# ---- a model package becomes an engine, on the GPU that will serve it
FROM nvcr.io/nvidia/tensorrt:${NVIDIA} AS engine-builder
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mtgr engine builder" \
      org.opencontainers.image.description="Builds and verifies engines of MTGR packages" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /src
COPY pyproject.toml README.md LICENSE mtgr.py ./
COPY model_def ./model_def
COPY engine_build ./engine_build
COPY plugins ./plugins
COPY service ./service
COPY loadtest ./loadtest
# TensorRT's Python package is the image's.
RUN python3 -m venv --system-site-packages /opt/mtgr \
 && /opt/mtgr/bin/pip install --no-cache-dir --disable-pip-version-check ".[gpu]" \
 && python3 -m venv /opt/sbom \
 && /opt/sbom/bin/pip install --no-cache-dir --disable-pip-version-check cyclonedx-bom==7.5.0 \
 && /opt/sbom/bin/cyclonedx-py environment --output-file /opt/mtgr/sbom.cdx.json /opt/mtgr/bin/python
COPY --from=plugins /src/build/plugins/libmtgr_ops.so /src/build/plugins/libmtgr_tensorrt.so /opt/mtgr/lib/
ENV PATH=/opt/mtgr/bin:/usr/local/cuda/bin:/usr/local/bin:/usr/bin:/bin \
    MTGR_OPS_LIBRARY=/opt/mtgr/lib/libmtgr_ops.so
WORKDIR /work
USER 1000:1000
# docker run --gpus 1 -v ...:/packages mtgr/engine-builder build /packages/home /packages/home-trt \
#   --kind tensorrt --plugin-library /opt/mtgr/lib/libmtgr_tensorrt.so
ENTRYPOINT ["/opt/mtgr/bin/mtgr"]
CMD ["build", "--help"]
