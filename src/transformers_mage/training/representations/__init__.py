"""Training that representations are part of: of models led by them, and of the diffusion that draws them (RCG)."""
