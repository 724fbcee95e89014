"""Fine-tune on a downstream task: `deepspeed finetune.py --config recipes/finetune_vqa2.yaml --backbone EXPORT`."""

from cromic_ds.cli import script

if __name__ == "__main__":
    script("finetune")
