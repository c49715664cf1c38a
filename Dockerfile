# One image for gateways, agents and the command line; which of them runs is the command's affair.
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/mesh mesh

# The locked dependencies are a layer of their own: a change of the source does not fetch them again.
WORKDIR /usr/src/mesh
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps -r requirements.lock
COPY pyproject.toml LICENSE ./
COPY mesh ./mesh
COPY registry ./registry
COPY gateway ./gateway
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

USER 10001
WORKDIR /var/lib/mesh
EXPOSE 7411
CMD ["mesh", "serve", "--config", "/etc/mesh/mesh.toml"]
