"""Seed prompts of role A, the asker of self-study (arXiv 2506.06266, section 4.1: five families).

Role A sees a chunk and one of these; what it replies becomes the user message that role B answers.
A family is a name and its wordings; adding one here is all it takes.
"""

SEED_FAMILIES: dict[str, tuple[str, ...]] = {
    "structuring": (
        "Write one request for facts of the text in a structured format such as JSON. "
        "Name exactly what should be in it. Reply with the request only.",
        "Ask for one thing in the text to be written as JSON. Say which thing and which of its facts. "
        "Reply with the request only.",
        "Choose something the text describes and ask for it as JSON. Reply with the request only.",
    ),
    "summarization": (
        "Write one request for a summary of what the text says about one thing. "
        "Name that thing exactly. Reply with the request only.",
        "Choose something the text describes and ask for everything that is known about it. "
        "Reply with the request only.",
        "Ask for a short overview of one part of the text. Say exactly which part. Reply with the request only.",
    ),
    "question": (
        "Write one question that tests whether somebody knows a fact of the text. "
        "Use exact names, so that it can be answered without seeing the text. Reply with the question only.",
        "Choose one fact of the text and ask for it. Name what it is about. Reply with the question only.",
        "Ask an exam question about a detail of the text. Reply with the question only.",
    ),
    "use_case": (
        "Think of a person who needs a fact of the text for their work. "
        "Write the message that this person would send. Reply with the message only.",
        "Write what somebody would ask who has a task to do and needs one detail of the text. "
        "Reply with the message only.",
        "Choose a practical task that depends on the text and ask for the fact it needs. Reply with the message only.",
    ),
    "creative": (
        "Ask for a small piece of writing that uses a fact of the text. Name the fact exactly. "
        "Reply with the request only.",
        "Start a playful conversation about one detail of the text. Reply with your first message only.",
        "Think of something unusual to write about one thing in the text and ask for it. Reply with the request only.",
    ),
}
"""Family name to its wordings. Order matters: families take turns in this order."""
