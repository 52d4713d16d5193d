"""Whether the slices that are served have become others than those that were trained on."""
