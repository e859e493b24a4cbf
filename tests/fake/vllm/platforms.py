"""Where a fake engine would run: on the GPUs that it is shown, else on the processor."""

import os


class current_platform:  # noqa: D101 (vLLM calls it so)
    device_type = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
