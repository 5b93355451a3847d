"""What every part of the project may use: files, images, processes, registries."""
