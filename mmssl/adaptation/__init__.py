"""From a pre-trained encoder to a classifier: end-to-end fine-tuning, by the training loop of pre-training."""
