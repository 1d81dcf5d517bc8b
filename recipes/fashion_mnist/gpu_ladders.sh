#!/usr/bin/env bash
# The ladders on Fashion-MNIST at the size of the papers, for machines with GPUs: ResNet-20 in four widths, and a ViT.
# A GPU holds several small networks: --workers 6 trains six of them side by side. With --plan the script only prints
# what the ladders cost. After an interruption the same command goes on.
#
#     recipes/fashion_mnist/gpu_ladders.sh [flags of transfer_ladder.py]
set -euo pipefail
cd "$(dirname "$0")/../.."

ladder() {
  accelerate launch --num_processes 1 recipes/transfer_ladder.py --config "recipes/fashion_mnist/ladder_$1.yaml" "${@:2}"
}

ladder resnet20 --widths 1 4 8 16 --sparsities 0.9 0.95 "$@"
ladder vit_tiny "$@"
