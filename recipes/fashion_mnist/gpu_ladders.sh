#!/usr/bin/env bash
# The ladders of the papers' size on Fashion-MNIST, for machines with GPUs: ResNet-20 of four widths, and a ViT. A GPU
# holds several small networks: --workers 6 trains six side by side. With --plan it only says what they cost; after an
# interruption the same command goes on.
#
#     recipes/fashion_mnist/gpu_ladders.sh [flags of transfer_ladder.py]
set -euo pipefail
cd "$(dirname "$0")/../.."

ladder() {
  accelerate launch --num_processes 1 recipes/transfer_ladder.py --config "recipes/fashion_mnist/ladder_$1.yaml" "${@:2}"
}

ladder resnet20 --widths 1 4 8 16 --sparsities 0.9 0.95 "$@"
ladder vit_tiny "$@"
