# The demo, or any other command: docker build -t fedcats . && docker run --shm-size=2g fedcats
# Your photos: docker run --shm-size=2g -v ~/photos:/photos:ro -v ~/runs:/data fedcats data=folder data.root=/photos
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*

# An index of your own: docker build --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
WORKDIR /fedcats
COPY Makefile pyproject.toml requirements.lock README.md LICENSE ./
COPY conf conf
COPY fedcats fedcats
RUN PIP_NO_CACHE_DIR=1 make setup

# What is reused and the runs: a volume, else they go with the container.
RUN useradd --create-home fedcats && install --directory --owner=fedcats /data
USER fedcats
ENV PATH=/fedcats/.venv/bin:$PATH FEDCATS_HOME=/data/home
WORKDIR /data
ENTRYPOINT ["fedcats"]
