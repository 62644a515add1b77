"""Public benchmarks with a judge, by their own protocols, and pairs of runs by ours.

assets.py, judge_prompts.py       questions, references, prompts of the original tools, known by hash; ours
judging.py                        a judge asked for what is not there yet
judgment_files.py                 judgment files, which others write into as well
judged_run.py                     MT-Bench from answers to results (arena_run.py Arena-Hard and pairs)
mt_bench.py, mt_bench_scores.py   its files, judgments and scores (arena_hard.py, arena_judging.py, arena_reading.py,
                                  arena_results.py)
arena_scores.py, style_control.py the scores of Arena-Hard's tools, by category where the baselines differ
                                  (arena_baselines.py)
verdict_parsers.py                a judge's words -> a verdict
"""
