"""The layout of vLLM 0.32, where its server moved to."""
