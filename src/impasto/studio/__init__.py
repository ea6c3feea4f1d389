"""The web page of `impasto studio`: a form for each command, and a queue that runs them.

Everything that takes long is a command of impasto in a process of its own (`worker`), written down in an SQLite file
(`queue`), with relative paths in the workspace folder:

    references/  uploaded images            styles/       style folders, as `impasto train` writes them
    images/      a folder per generation    concepts/     concepts.json of `impasto concepts find`
    exports/     files for other tools      calibration/  results of `impasto noise calibrate`
    comparisons/ results of `impasto compare`             bases/        diffusers folders of your own
    votes/       vote sets of `impasto votes`
    .studio/     queue and logs, never served             uploads/      gradio's temporary files
"""
