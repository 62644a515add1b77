"""Answers of models, and what they are worth: generation, judges, and the protocols of public benchmarks.

answers/       who answers, and how each answer is kept: here, in vLLM, on a server
judged/        MT-Bench, Arena-Hard and pairs of runs, by a judge; files, parsers and scores of the original tools
tasks/         tasks with right answers: figfont, maths, suites of lm-evaluation-harness
statistics.py  means, intervals and comparisons
results.py     what every evaluation ends in
comparison.py  two results of the same questions
"""
