"""Training jobs: submitting them, the worker that carries them out, and waiting for their events.

May import records, learning, storage, system and errors. Only a training process imports Keras; it knows no database.
Start at `submit` for what becomes of a request, at `worker` for the process that takes jobs off the queue, then
`job_runner` (a job's attempts), `attempt` (the worker's conversation with a training process), `messages` (what is
said), `training_child` and `train_job` (the training process's own side).
"""
