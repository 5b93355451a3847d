"""Objects followed through the frames of a film, with any model of images."""
