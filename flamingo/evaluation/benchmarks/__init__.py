"""Benchmarks, one file each; ``build`` makes them from a configuration."""

from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.benchmarks.binding import BindingBenchmark
from flamingo.evaluation.benchmarks.build import build_benchmarks
from flamingo.evaluation.benchmarks.dataset import DatasetBenchmark

__all__ = ["Benchmark", "BindingBenchmark", "DatasetBenchmark", "build_benchmarks"]
