"""Public benchmarks with a judge, by their own protocols, and pairs of runs by ours.

assets.py, judge_prompts.py       questions, references, prompts of the original tools, known by hash; ours
run.py, names.py                  what a run is told, and what all of them do alike
answer_files.py                   answers, each with how it was made
judging.py                        a judge asked for what is not there yet
judgment_files.py                 judgment files, which others write into as well
mt_bench.py                       its questions and answers, then its judgments (mt_bench_judging.py), scores
                                  (mt_bench_scores.py), and all three in turn (mt_bench_run.py)
arena_hard.py                     the same of Arena-Hard (arena_questions.py, arena_config.py, arena_prompts.py,
                                  arena_judging.py, arena_reading.py, arena_results.py), and of pairs (arena_run.py)
arena_scores.py, style_control.py the scores of Arena-Hard's tools, ours (arena_own_scores.py), and by category where
                                  the baselines differ (arena_baselines.py)
verdict_parsers.py                a judge's words -> a verdict
"""
