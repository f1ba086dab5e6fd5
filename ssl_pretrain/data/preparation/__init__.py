"""Images on disk -> preprocessed cases, with nnU-Net's own readers, planners and preprocessors."""
