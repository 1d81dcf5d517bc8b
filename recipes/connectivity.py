"""See whether two trained networks lie in the same basin, before and after one is aligned to the other.

    accelerate launch recipes/connectivity.py --config recipes/digits/imp.yaml --a outputs/dense-1 \\
        --b outputs/dense-2 --align activation --output_dir outputs/connectivity

Measures the error on the straight line between the networks on the test data, with batch norms recalibrated at every
point, and the same after ``a`` was permuted to match ``b``. If both folders hold masks, their overlap is measured too.
Writes ``report.html`` with its pictures and numbers, and the permutation.

References:
    Frankle et al., 2020, arXiv:1912.05671. Ainsworth et al., 2023, "Git Re-Basin", arXiv:2209.04836.
"""

from hf_lottery.hf.commands.connectivity import main

if __name__ == "__main__":
    main()
