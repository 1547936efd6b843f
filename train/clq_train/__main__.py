"""`python -m clq_train` is `clq-train`: what torchrun can start by name."""

from clq_train.cli import main

main()
