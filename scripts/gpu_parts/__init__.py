"""Parts of `scripts/gpu_check`: torch, transformers and onpol itself, nothing else."""
