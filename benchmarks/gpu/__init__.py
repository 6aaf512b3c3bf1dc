"""What a GPU will tell of the trainer, in minutes: each part a function that runs small on a CPU too."""
