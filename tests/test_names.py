"""Names: ids that are made look as ids are said to look."""

from __future__ import annotations

import re
import time

from app.names import id_of, new_id


def test_ids_are_unique_and_sort_by_time() -> None:
    first = new_id("job")
    time.sleep(0.002)
    later = [new_id("job") for _ in range(1000)]

    assert 1000 == len(set(later))
    assert first < min(later)


def test_an_id_has_the_form_of_its_kind() -> None:
    assert re.fullmatch(id_of("job"), new_id("job"))
    assert not re.fullmatch(id_of("job"), new_id("ds"))
