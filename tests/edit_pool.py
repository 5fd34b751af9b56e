"""A pool in MBPP's format from which edits are made: four programs, any family of corruptions applies."""

POOL = [
    {
        "task_id": number,
        "prompt": f"Return the largest of the values plus {number}.",
        "code": f"def top(values):\n    return max(values) + {number}\n",
        "test_list": [f"assert top([1, 5, 2]) == {5 + number}", f"assert top([-3, -1]) == {number - 1}"],
        "test_imports": [],
    }
    for number in range(1, 5)
]
