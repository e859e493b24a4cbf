"""The old place of vLLM's server, which 0.32 keeps and calls deprecated."""

from vllm.entrypoints.launchers.api_server.entry import main

if __name__ == "__main__":
    main()
