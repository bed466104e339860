"""Puts back `jax.tree_map`, a name that FedJAX 0.0.17 uses and JAX has removed."""

from __future__ import annotations

import jax

jax.tree_map = jax.tree_util.tree_map
