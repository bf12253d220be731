"""The sparse code of latents: simplicial embedding, its iterated learning, class activation maps on it."""
