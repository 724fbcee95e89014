"""Pretrain on posts, images and comments: `deepspeed pretrain.py --config recipes/pretrain_cmt.yaml`."""

from cromic_ds.cli import script

if __name__ == "__main__":
    script("pretrain")
