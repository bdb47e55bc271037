"""The GPT core: a plain nn.Module in two families, its loss, initial weights, sizes and Hugging Face form."""
