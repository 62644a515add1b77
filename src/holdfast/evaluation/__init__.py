"""Answers of models, and what they are worth: generation, judges, and the protocols of public benchmarks.

journal.py                  rows in a file, each on the disk before the next is paid for
client.py                   any server that speaks OpenAI's chat completions
client_settings.py          what a call asks for, how long it may take, how often it is tried
client_reply.py             what a server answers, or why that is no reply
generation.py               requests -> replies, kept as they come, asked again only where missing
generation_turns.py         questions of one turn or more, several samples each
transformers_backend.py     what answers: a model in this process (openai_backend.py a server, vllm_backend.py vLLM)
cost.py                     what calls cost at most, before any is made
judging.py                  a judge asked for what is not there yet
mt_bench.py, arena_hard.py  public benchmarks by their own protocols (scores, parsers and files beside them)
figfont.py, maths.py        tasks with right answers; harness.py those of lm-evaluation-harness
statistics.py               means, intervals and comparisons
results.py                  what every evaluation ends in
"""
