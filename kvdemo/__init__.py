"""kvdemo: prove on your own machine what sharing the KV cache between vLLM instances buys."""

__version__ = "0.1.0"
