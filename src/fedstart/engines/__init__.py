"""Where clients run: `local` in this process, `flower` on the nodes of a Flower grid."""
