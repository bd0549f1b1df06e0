# xrddiff on CPUs, with JupyterLab: docker build -t xrddiff . && docker run --rm -p 8888:8888 -v "$PWD:/data" xrddiff
FROM python:3.11-slim-bookworm

# PyTorch without CUDA is a tenth of the size; everything else is what the tests ran with.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /opt/xrddiff
COPY settings.ini setup.py constraints.txt README.md LICENSE MANIFEST.in CITATION.cff CHANGELOG.md ./
COPY nbs ./nbs
COPY slurm ./slurm
COPY xrddiff ./xrddiff
RUN python -m pip install --constraint constraints.txt ".[lab,io,sweeps,workers,remote]" \
    && useradd --create-home --uid 1000 xrddiff \
    && install --directory --owner xrddiff /data

USER 1000
WORKDIR /data
EXPOSE 8888
# The address has the token; without -p nothing outside the container can reach it.
CMD ["xrddiff", "lab", "--no-browser", "--folder", "/data/xrddiff-tutorials", "--", "--ServerApp.ip=0.0.0.0", "--port=8888"]
