"""Examples of task.kind=span_qa: a question, a context, and the places of the answers in it."""

from typing import Any

from scaletrain.config.finetune_schema import FinetuneData, TaskSection
from scaletrain.config.problems import shown
from scaletrain.data.examples.record import Record, UnfitError, described, has, list_of, text_of, value_of


def read_asked(record: Record, data: FinetuneData, task: TaskSection) -> dict[str, Any]:
    """The record as id, question, context and answers; a record without an id is called by its place."""
    del task  # as the other readers
    columns = data.columns
    name = value_of(record, "id", columns) if has(record, "id", columns) else record.place
    question = text_of(value_of(record, "question", columns), "question")
    context = text_of(value_of(record, "context", columns), "context")
    answers = tuple(_answer(pair, context) for pair in _pairs(value_of(record, "answers", columns)))
    return {"id": str(name), "question": question, "context": context, "answers": answers}


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    """(text, start) of each answer: from a list of objects, or from an object of two lists as `datasets` writes it."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = list_of(f"[{value}]", "answers")[0]
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = [value]
    if isinstance(value, dict):
        texts, starts = list_of(value.get("text"), "answers.text"), list_of(value.get("answer_start"), "answer_start")
        if len(texts) != len(starts):
            raise UnfitError(f"{len(texts)} answers and {len(starts)} starts: give each answer one")
        return list(zip(texts, starts, strict=True))
    found = []
    for answer in list_of(value, "answers"):
        if not isinstance(answer, dict) or not {"text", "answer_start"} <= answer.keys():
            raise UnfitError(f"an answer is {described(answer)} and should be an object with text and answer_start")
        found.append((answer["text"], answer["answer_start"]))
    return found


def _answer(pair: tuple[Any, Any], context: str) -> tuple[str, int]:
    text, start = text_of(pair[0], "answer"), pair[1]
    if not isinstance(start, int) or isinstance(start, bool):
        raise UnfitError(f"answer_start is {described(start)} and should be a whole number")
    if start >= 0 and context.startswith(text, start):
        return text, start
    raise UnfitError(f"answer {shown(text)} is not at answer_start {start} of the context: {_where(text, context)}")


def _where(text: str, context: str) -> str:
    places: list[int] = []
    place = context.find(text)
    while place >= 0 and len(places) < 4:
        places.append(place)
        place = context.find(text, place + 1)
    if not places:
        return "it does not occur there"
    return f"it stands at {', '.join(map(str, places[:3]))}{' and further on' if len(places) > 3 else ''}"
