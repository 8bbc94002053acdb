"""``python -m bark_jax`` is the command line ``bark-jax``."""

from bark_jax.cli import main

if __name__ == "__main__":
    main()
