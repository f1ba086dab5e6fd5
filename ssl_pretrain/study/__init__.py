"""Did pretraining help? Fine-tuning with and without, many times, through nnU-Net, and what the numbers say."""
