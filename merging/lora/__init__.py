"""LoRA adapters in the format of PEFT: as experts of a merge, and as what a merge is written to."""
