"""Brain-tumour segmentation in 2-D MRI, from versioned data to a deployed service."""

__version__ = "0.1.0"
