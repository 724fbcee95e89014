"""Pretrain on posts, images and comments: `deepspeed pretrain.py --config recipes/pretrain_cmt.yaml`."""

from cromic_ds.cli.commands import script

if __name__ == "__main__":
    script("pretrain.py", "cromic_ds.training.pretrain", "PretrainSettings", "pretrain")
