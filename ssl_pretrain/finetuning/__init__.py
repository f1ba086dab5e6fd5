"""Fine-tuning through nnU-Net: names of trainers, schedules, and what our trainers share."""
