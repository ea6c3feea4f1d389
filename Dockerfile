# impasto in a container; the install step is the README's.
#   docker build -t impasto .                                                                                    CPU
#   docker build -t impasto --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .                     CUDA, run with --gpus all
#   docker run --rm -v "$PWD:/work" impasto train --base mini-sd15 --image ref.png --caption "cat, ink style"
#   docker run --rm -v "$PWD:/work" -p 7860:7860 impasto studio --host 0.0.0.0 --auth NAME:PASSWORD --workspace /work
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/impasto
COPY . .
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0
RUN pip install --no-cache-dir -c constraints.txt -e '.[studio]'
ENV HF_HOME=/work/.cache/huggingface
WORKDIR /work
ENTRYPOINT ["impasto"]
CMD ["--help"]
