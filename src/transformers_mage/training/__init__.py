"""
Training: what every run does around its steps, and what pre-training learns.

[`TrainingRun`] is a run, with its optimizer, checkpoints and metrics, of any model and any source of batches;
[`MageForPreTraining`] is what MAGE is pre-trained as. The scripts and `representation`, which fine-tunes and probes,
stand on it. It needs the extra `training`: `pip install "transformers-mage[training]"`.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "arguments": ["TrainingArguments"],
        "checkpointing": ["Progress", "checkpoints", "find_checkpoint", "save_checkpoint"],
        "conditional": ["class_settings", "freeze_encoder", "load_for_training"],
        "contrastive": ["contrast_micro_batches", "contrast_updates", "info_nce"],
        "optimization": ["create_optimizer", "create_scheduler"],
        "pretraining": ["MageForPreTraining", "build_model", "evaluate", "save_model"],
        "run": ["TrainingRun", "create_accelerator"],
        "stopping": ["InterruptedRunError", "NonFiniteLossError"],
    },
)
