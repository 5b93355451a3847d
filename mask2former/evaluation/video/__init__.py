"""Average precision of tracks by the rules of YouTube-VIS."""
