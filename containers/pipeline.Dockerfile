# For the machine with the DICOM files: the `pipeline` command, CPU only.
#   docker build -f containers/pipeline.Dockerfile -t ich-pipeline .
#   docker run --rm --user "$(id -u)" -e HOME=/out -v "$PWD/dicoms:/dicoms:ro" -v "$PWD/out:/out" \
#       ich-pipeline build --src /dicoms --out /out/cache.zarr
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt data_catalog.yaml ./
COPY pipeline pipeline
COPY training training
COPY phantom phantom
RUN python -m venv /opt/ich \
    && /opt/ich/bin/pip install --no-cache-dir -c constraints.txt ".[pipeline,codecs,cluster,s3]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/ich /opt/ich
# Compiled kernels are cached next to the code if it is writable, otherwise in this folder.
ENV PATH=/opt/ich/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba
RUN useradd --create-home --uid 1000 ich
USER 1000
ENTRYPOINT ["pipeline"]
CMD ["--help"]
