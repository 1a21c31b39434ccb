# docker build --tag fedpgp .                               on processors
# docker build --tag fedpgp:cuda --build-arg TORCH=cuda .   on NVIDIA GPUs: docker run --gpus all
# docker run --rm fedpgp                                    what this machine can do
# docker run --rm --volume fedpgp-runs:/srv/runs fedpgp \
#   experiments.run runtime=inline run_dir=/srv/runs/first
# docs/deployment/compose.yaml: a server and its sites
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/fedpgp
COPY constraints.txt ./
# The package index has torch's CUDA build; the one for processors alone is a tenth of it.
RUN grep -E '^torch(vision)?==' constraints.txt > /tmp/torch.txt \
    && if [ "$TORCH" = cpu ]; then \
        pip install --index-url https://download.pytorch.org/whl/cpu --requirement /tmp/torch.txt; \
    else \
        pip install --requirement /tmp/torch.txt; \
    fi
COPY . .
RUN pip install --constraint constraints.txt --editable '.[hf,hub,privacy,serve]'

FROM python:${PYTHON}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/fedpgp /opt/fedpgp
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 FLWR_TELEMETRY_ENABLED=0
RUN useradd --create-home --uid 1000 fedpgp \
    && install --directory --owner fedpgp /srv/fedpgp /srv/fedpgp/flwr /srv/runs /srv/secrets
USER 1000
WORKDIR /opt/fedpgp
ENTRYPOINT ["python", "-m"]
CMD ["experiments.doctor", "--no-run"]
