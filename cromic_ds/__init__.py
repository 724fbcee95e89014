"""cromic_ds: the training system for CroMIC-CMT, Unified VLP and ViLT on DeepSpeed."""

__version__ = "0.1.0"
