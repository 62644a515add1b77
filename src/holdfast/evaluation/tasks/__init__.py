"""Tasks with right answers, for which no judge is needed.

samples.py                        a task's questions answered k times, marked, and scored with intervals
figfont.py, figfont_task.py       words drawn in figlet fonts
maths_questions.py, maths.py      maths with answers in a box
verifier.py, verifier_process.py  answers compared in processes that can be ended
harness.py, harness_scores.py     suites of lm-evaluation-harness
"""
