"""What the training scripts share. It needs the `training` extra: `pip install "transformers-mage[training]"`."""
