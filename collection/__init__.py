"""The file a user shares: LoRA weights plus a catalogue of effects, and readers and writers of foreign layouts."""
