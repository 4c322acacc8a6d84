"""The file a user shares: LoRA weights plus a catalogue of effects, readers and writers of LoRA layouts."""
