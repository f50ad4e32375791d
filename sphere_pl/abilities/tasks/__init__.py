"""The general abilities that can be measured, one file each."""

from sphere_pl.abilities.task import Task
from sphere_pl.abilities.tasks.boolq import BOOLQ, BOOLQ_ONE_TOKEN
from sphere_pl.abilities.tasks.cola import COLA
from sphere_pl.abilities.tasks.gsm8k import GSM8K, GSM8K_GOLD_HINT
from sphere_pl.abilities.tasks.mmlu import MMLU
from sphere_pl.abilities.tasks.mrpc import MRPC
from sphere_pl.abilities.tasks.natural_questions import NATURAL_QUESTIONS, NATURAL_QUESTIONS_WITH_PASSAGE
from sphere_pl.abilities.tasks.rte import RTE, RTE_ONE_TOKEN
from sphere_pl.abilities.tasks.sst2 import SST2

_ALL = (
    GSM8K,
    GSM8K_GOLD_HINT,
    RTE,
    RTE_ONE_TOKEN,
    NATURAL_QUESTIONS,
    NATURAL_QUESTIONS_WITH_PASSAGE,
    BOOLQ,
    BOOLQ_ONE_TOKEN,
    SST2,
    MRPC,
    COLA,
    MMLU,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
