"""Collections of images with subjects, sessions and masks: ``pretrain_data.json``."""
