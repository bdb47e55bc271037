"""Token files of other tools (Megatron, numpy, OLMo, nanoGPT, llm.c, datatrove), read where they are."""
