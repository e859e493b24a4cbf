"""In the place of vLLM's compiled part."""
