"""When something that happens every so often is due."""

TIMES_IN_A_RUN = 5
"""How often where no number of steps is set."""


def is_due(step: int, every_steps: int | None, total_steps: int) -> bool:
    """Whether it happens after `step` steps of `total_steps`; always after the last.

    Args:
        step: steps done, from 1.
        every_steps: steps between two times; None spreads five over the run, as evenly as whole steps allow.
        total_steps: steps of the run.
    """
    if step == total_steps:
        return True
    if every_steps is not None:
        return step % every_steps == 0
    return step * TIMES_IN_A_RUN // total_steps > (step - 1) * TIMES_IN_A_RUN // total_steps
