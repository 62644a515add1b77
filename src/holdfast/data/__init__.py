"""Rows of any layout -> validated records -> tokens -> batches.

sources.py             a path, hub name or data set -> rows, each with the place it stands
folders.py             which files of a folder are its rows, and what must not stand among them
file_readers.py        one kind of file -> its rows: which reader, and those of JSON
tables.py              CSV, Parquet and Arrow files -> their rows
file_bytes.py          a file's bytes and lines, unpacked
json_text.py           JSON read in pieces, and its faults in words
formats.py             the table of accepted row layouts, and which of them a file has
preference_layouts.py  preference rows of each layout -> records
scored_layouts.py      rows of several scored completions -> records, by a stated rule
sft_layouts.py         supervised rows of each layout -> records
messages.py            one value of a row -> checked messages
records.py             PreferenceRecord, SFTRecord
faults.py              why a row cannot be used: the reasons, and what carries them
validation.py          every row checked; strict refuses, lenient sets aside
splits.py              disjoint by prompt, decided by a seeded hash
sampling.py            some of many rows, drawn by a seed
time_limit.py          how long somebody else's program, such as a chat template, may compute
memory_limit.py        how much memory it may take
rendering.py           a tokenizer and its chat template: conversations -> text -> tokens
turn_checks.py         what must hold of these tokens to train on them
lengths.py             max_length: one rule for both sides of a pair, and its report
template_content.py    whether a template keeps what the messages say
encoders.py            one record -> tokens and completion mask
chat.py                many records -> the same, in memory
processes.py           chunks of a stream, worked on by several processes
examine.py             a chunk of rows held against what training needs
findings.py            what a check counts
check.py               every row of a source checked, in bounded memory
stored.py              checked rows on disk: records and tokens, read when asked for
intake.py              a source checked, tokenized and kept by content: what a run and the trainers take
check_warnings.py      what is no fault, yet worth knowing
check_report.py        what a check found, as plain data
check_summary.py       the same in a few lines
information.py         which target tokens the two before them do not give away
packing.py             pairs -> shared-prefix rows
collate.py             rows of tokens -> tensors
"""
