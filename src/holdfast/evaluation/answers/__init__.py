"""Requests -> replies, each kept before the next is paid for, and asked again only where missing.

journal.py               rows in a file, each on the disk before the next is paid for
client.py                any server that speaks OpenAI's chat completions
client_settings.py       what a call asks for, how long it may take, how often it is tried
client_reply.py          what a server answers, or why that is no reply
generation.py            requests -> replies, by whatever answers them
generation_turns.py      questions of one turn or more, several samples each
generation_prompts.py    conversations -> prompts that fit the model
transformers_backend.py  what answers: a model in this process (openai_backend.py a server, vllm_backend.py vLLM)
identity.py              which model answered
cost.py                  what calls cost at most, before any is made
"""
