# For NVIDIA GPUs: vLLM's image, which has CUDA, torch and vLLM, and iwopd in it.
# Not built by the project's tests, which run where there is neither a registry of images nor a GPU.
#
#   docker build --tag iwopd .
#   docker run --gpus all --ipc host --volume "$PWD/runs:/iwopd/runs" iwopd train +experiment=gsm8k_1gpu
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}

COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
COPY conf /src/conf
RUN python3 -m pip install --no-cache-dir '/src[lora,wandb,tensorboard]'

WORKDIR /iwopd
ENTRYPOINT ["iwopd"]
