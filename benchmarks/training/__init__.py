"""Shows that every optimizer trains: `python -m benchmarks.training [--optimizer NAME ...] [--task NAME ...]`.

Each optimizer of the library, two with a cosine schedule, and AdamW with each modifier run on each task once for every
rate of a row around its default, all in one compiled program. An entry of the table is the number of steps until the
loss is at the task's target, with the best rate, and the window: by what factor the greatest and the least rate that
reach the target differ. Tasks need no download: their data are drawn, or come from scikit-learn (the digits), mnist1d,
or Python (the text of a character model).
"""
