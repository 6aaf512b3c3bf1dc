# For the machine with the GPU: the `train` command. PyTorch's wheels include CUDA; the host needs the NVIDIA driver and
# container toolkit.
#   docker build -f containers/training.Dockerfile -t ich-training .
#   docker run --rm --gpus all --ipc=host --user "$(id -u)" -e HOME=/runs -v "$PWD/cache.zarr:/cache.zarr:ro" \
#       -v "$PWD/runs:/runs" ich-training run --cache /cache.zarr --out /runs/resnet50
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt data_catalog.yaml ./
COPY pipeline pipeline
COPY training training
COPY phantom phantom
RUN python -m venv /opt/ich \
    && /opt/ich/bin/pip install --no-cache-dir -c constraints.txt ".[training,export,timm]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/ich /opt/ich
ENV PATH=/opt/ich/bin:$PATH
RUN useradd --create-home --uid 1000 ich
USER 1000
ENTRYPOINT ["train"]
CMD ["--help"]
