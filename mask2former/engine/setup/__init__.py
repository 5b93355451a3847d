"""From what the user gave to one resolved config."""
