"""Where clients run: `local` in this process."""
