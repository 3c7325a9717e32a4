"""`python -m benchmarks`: the benchmarks that there are, each as a command."""

from benchmarks.overhead import main

if __name__ == "__main__":
    main()
