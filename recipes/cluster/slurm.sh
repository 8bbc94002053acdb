#!/usr/bin/env bash
# sbatch recipes/cluster/slurm.sh texts.txt out models/large: one mesh over two hosts of eight GPUs, two to a copy.
#SBATCH --job-name=bark-jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=01:00:00
set -euo pipefail
texts=$1 out=$2 model=$3
# A process per host, with all of its GPUs; JAX finds the others by Slurm's own variables.
srun --kill-on-bad-exit=1 python recipes/cluster/speak.py "$texts" "$out" --model "$model" --share 2
