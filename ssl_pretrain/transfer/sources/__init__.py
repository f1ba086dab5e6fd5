"""One file per format in which weights come, and what opens files and finds them on the Hugging Face Hub."""
